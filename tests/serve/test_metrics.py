"""What is counted, on a clock that the test moves."""

from __future__ import annotations

import contextlib

import httpx
from prometheus_client.parser import text_string_to_metric_families

from chogori.chat.completer import (
    ChatRequest,
    ContentDelta,
    Finished,
    Started,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.chat.messages import Message, ToolSpec
from chogori.serve.backend import Gauges
from chogori.serve.metrics import Metrics
from tests.serve.conftest import Serve
from tests.serve.scripted_backend import ScriptedBackend

REQUEST = ChatRequest(
    messages=[Message(role="user", content="hi")],
    tools=[ToolSpec(name="f", parameters={"type": "object", "required": ["a"]})],
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def samples(text: bytes | str) -> dict[str, float]:
    """Value of each sample, named as Prometheus would: `name{label="value"}`."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text if isinstance(text, str) else text.decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_latencies_tokens_and_cache_hits_of_one_answer() -> None:
    clock = Clock()
    metrics = Metrics(ScriptedBackend.saying("Hi"), clock=clock)
    with metrics.measure("x", REQUEST) as measured:
        clock.now += 1
        measured.observe(Started(prompt_tokens=40, cached_tokens=30))
        clock.now += 2
        measured.observe(ContentDelta(text="a"))
        clock.now += 5
        measured.observe(ToolCallBegin(index=0, id="functions.f:0", name="f"))
        clock.now += 5
        measured.observe(ToolCallDelta(index=0, arguments='{"a": 1}'))
        measured.observe(Finished(reason="tool_calls"))
        clock.now += 7
        measured.observe(Usage(prompt_tokens=40, completion_tokens=6, cached_tokens=30))
    found = samples(metrics.render())
    assert found['chogori_time_to_first_token_seconds_sum{api="x"}'] == 3
    assert found['chogori_time_per_output_token_seconds_sum{api="x"}'] == 10 / 5
    assert found['chogori_answer_seconds_sum{api="x"}'] == 20
    assert found['chogori_prompt_tokens_total{api="x"}'] == 40
    assert found['chogori_cached_tokens_total{api="x"}'] == 30
    assert found['chogori_completion_tokens_total{api="x"}'] == 6
    assert found["chogori_cache_hit_ratio"] == 0.75
    assert found['chogori_answers_total{api="x",outcome="tool_calls"}'] == 1
    assert found['chogori_tool_calls_total{validity="valid"}'] == 1


def test_answers_that_fail_or_are_given_up_are_told_apart_and_have_no_latency() -> None:
    metrics = Metrics(ScriptedBackend.saying("Hi"))
    for leave in (ZeroDivisionError, KeyboardInterrupt):
        with contextlib.suppress(leave), metrics.measure("x", REQUEST) as measured:
            measured.observe(ToolCallBegin(index=0, id="functions.f:0", name="f"))  # half a call is not judged
            raise leave
    found = samples(metrics.render())
    assert found['chogori_answers_total{api="x",outcome="error"}'] == 1
    assert found['chogori_answers_total{api="x",outcome="cancelled"}'] == 1
    assert not any(name.startswith(("chogori_answer_seconds_count", "chogori_tool_calls_total")) for name in found)


def test_the_backends_state_is_read_when_asked_for() -> None:
    backend = ScriptedBackend.saying("Hi")
    metrics = Metrics(backend)
    backend.state = Gauges(running=3, waiting=2, cache_tokens_used=10, cache_tokens_total=20, extra={"batch_size": 4})
    found = samples(metrics.render())
    names = "requests_running requests_waiting cache_tokens_used cache_tokens_capacity batch_size"
    assert [found[f"chogori_{name}"] for name in names.split()] == [3, 2, 10, 20, 4]


def test_a_server_counts_responses_by_route_and_status_and_only_its_own(serve: Serve) -> None:
    server, other = serve(ScriptedBackend.saying("Hi")), serve(ScriptedBackend.saying("Hi"))
    body = {"messages": [{"role": "user", "content": "x"}]}
    for changes in ({}, {"stream": True}, {"temperature": 9}):
        httpx.post(f"{server.url}/v1/chat/completions", json={**body, **changes})
    httpx.get(f"{server.url}/whatever/path/that/a/client/makes/up")
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = samples(response.text)
    assert found['chogori_http_responses_total{route="/v1/chat/completions",status="200"}'] == 2
    assert found['chogori_http_responses_total{route="/v1/chat/completions",status="400"}'] == 1
    assert found['chogori_http_responses_total{route="unknown",status="404"}'] == 1
    assert found['chogori_answers_total{api="openai_chat",outcome="stop"}'] == 2
    assert "made" not in response.text
    assert "chat/completions" not in httpx.get(f"{other.url}/metrics").text
