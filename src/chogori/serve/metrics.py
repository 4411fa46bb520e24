"""Prometheus metrics of one server: latencies, tokens, cache hits, and whether tool calls fit their schemas."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chogori.chat.completer import (
    ChatRequest,
    ContentDelta,
    Event,
    Finished,
    Repaired,
    RepairKind,
    Started,
    TextRequest,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.serve.backend import Backend
from chogori.serve.tool_call_validity import validity_of

# From a millisecond, a cached token on a small model, to ten minutes, a long answer on a CPU.
SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)


class Metrics:
    """What one server counts; every application has its own registry."""

    def __init__(self, backend: Backend, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._responses = self._counter("http_responses", "Responses sent", "route", "status")
        self._answers = self._counter("answers", "Answers by how they ended", "api", "outcome")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts", "api")
        self._cached_tokens = self._counter("cached_tokens", "Tokens of prompts found in the cache", "api")
        self._completion_tokens = self._counter("completion_tokens", "Tokens produced", "api")
        self._tool_calls = self._counter("tool_calls", "Tool calls, checked against the declared schema", "validity")
        self._repairs = self._counter("repairs", "Tool calls of the backend that were put right", "kind")
        self._first_token = self._histogram("time_to_first_token_seconds", "From request to first token")
        self._token_gap = self._histogram("time_per_output_token_seconds", "Mean time between tokens of an answer")
        self._whole = self._histogram("answer_seconds", "From request to the last token")
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._registry.register(_BackendState(backend, self))

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"chogori_{name}", words, labels, registry=self._registry)

    def _histogram(self, name: str, words: str) -> Histogram:
        return Histogram(f"chogori_{name}", words, ["api"], buckets=SECONDS, registry=self._registry)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    @property
    def cache_hit_ratio(self) -> float:
        """Share of all prompt tokens that were found in the cache."""
        return self._num_cached_tokens / self._num_prompt_tokens if self._num_prompt_tokens else 0.0

    def count_response(self, route: str, status: int) -> None:
        """Count an HTTP response; `route` is a pattern of ours, never a path of the client's."""
        self._responses.labels(route, str(status)).inc()

    @contextlib.contextmanager
    def measure(self, api: str, request: ChatRequest | TextRequest) -> Generator[Measurement]:
        """Measure one request: show the measurement its events; leaving the block ends it, by an error or not."""
        measurement = Measurement(request, self._clock)
        outcome = "cancelled"
        try:
            yield measurement
            outcome = measurement.outcome
        except Exception:
            outcome = "error"
            raise
        finally:
            self._record(api, measurement, outcome)

    def _record(self, api: str, measured: Measurement, outcome: str) -> None:
        self._answers.labels(api, outcome).inc()
        self._prompt_tokens.labels(api).inc(measured.prompt_tokens)
        self._cached_tokens.labels(api).inc(measured.cached_tokens)
        self._completion_tokens.labels(api).inc(measured.completion_tokens)
        self._num_prompt_tokens += measured.prompt_tokens
        self._num_cached_tokens += measured.cached_tokens
        for validity in measured.tool_call_validities():
            self._tool_calls.labels(validity).inc()
        for kind in measured.repairs:
            self._repairs.labels(kind).inc()
        if measured.first_token_s is not None:
            self._first_token.labels(api).observe(measured.first_token_s)
        if measured.token_gap_s is not None:
            self._token_gap.labels(api).observe(measured.token_gap_s)
        if measured.whole_s is not None:
            self._whole.labels(api).observe(measured.whole_s)


class Measurement:
    """One request as it is answered."""

    def __init__(self, request: ChatRequest | TextRequest, clock: Callable[[], float]) -> None:
        self._tools = {tool.name: tool for tool in request.tools} if isinstance(request, ChatRequest) else {}
        self._clock = clock
        self._began = clock()
        self._first: float | None = None
        self._last: float | None = None
        self._calls: dict[tuple[int, int], tuple[str, list[str]]] = {}
        self._finished: dict[int, Finished] = {}
        self.repairs: list[RepairKind] = []
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.whole_s: float | None = None

    def observe(self, event: Event) -> None:
        """Take note of an event that is on its way to the client."""
        match event:
            case Started():
                self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
            case ContentDelta():
                self._token()
            case ToolCallBegin():
                self._token()
                self._calls[event.choice, event.index] = (event.name, [])
            case ToolCallDelta():
                self._token()
                self._calls[event.choice, event.index][1].append(event.arguments)
            case Finished():
                self._finished[event.choice] = event
            case Usage():
                self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
                self.completion_tokens = event.completion_tokens
                self.whole_s = self._clock() - self._began
            case Repaired():
                self.repairs.append(event.kind)

    def _token(self) -> None:
        self._last = self._clock()
        if self._first is None:
            self._first = self._last

    @property
    def outcome(self) -> str:
        """How the answer ended: the finish reason of its first choice."""
        return self._finished[min(self._finished)].reason if self._finished else "unfinished"

    @property
    def first_token_s(self) -> float | None:
        """Time to the first token, where one came."""
        return None if self._first is None else self._first - self._began

    @property
    def token_gap_s(self) -> float | None:
        """Mean time between tokens, where there were two."""
        if self._first is None or self._last is None or self.completion_tokens < 2:
            return None
        return (self._last - self._first) / (self.completion_tokens - 1)

    def tool_call_validities(self) -> Iterable[str]:
        """How each call of a finished choice fits its declaration."""
        for (choice, _), (name, pieces) in self._calls.items():
            if choice in self._finished:
                yield validity_of(self._tools.get(name), "".join(pieces))


class _BackendState(Collector):
    """What is read from the backend when somebody asks."""

    def __init__(self, backend: Backend, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        gauges = self._backend.gauges()
        values: list[tuple[str, str, float]] = [
            ("requests_running", "Requests being read or answered", gauges.running),
            ("requests_waiting", "Requests in the queue", gauges.waiting),
            ("cache_tokens_used", "Tokens held in the cache", gauges.cache_tokens_used),
            ("cache_tokens_capacity", "Tokens that the cache has room for", gauges.cache_tokens_total),
            ("cache_hit_ratio", "Share of prompt tokens found in the cache", self._metrics.cache_hit_ratio),
            *((name, "Reported by the backend", value) for name, value in gauges.extra.items()),
        ]
        for name, words, value in values:
            yield GaugeMetricFamily(f"chogori_{name}", words, value=value)
