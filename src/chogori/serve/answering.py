"""The way of every request to the Completer, whichever API it came through: metered, and gone when its client is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import cast

from fastapi import Request

from chogori.chat.completer import ChatRequest, Completer, Completion, Event, Started, TextRequest, Usage, complete
from chogori.serve.accounts.answer_count import AnswerCount, CountText
from chogori.serve.accounts.caller import caller_of
from chogori.serve.accounts.ledger import OpenUsage, UsageLedger
from chogori.serve.accounts.rate_limits import RateLimits
from chogori.serve.api_errors import ApiError
from chogori.serve.backend import Backend, ModelCard
from chogori.serve.connection import while_connected
from chogori.serve.envelope import request_id
from chogori.serve.lifecycle import Lifecycle
from chogori.serve.metrics import Metrics
from chogori.serve.settings import ServeSettings

Through = Callable[[Completer], Completer]


class MeteredCompleter:
    """A Completer whose requests are metered for their caller, counted and timed.

    Of a stream, an event leaves when the ledger has committed the count that includes it. A whole answer's count is
    committed before the answer leaves; where it never leaves, its prompt alone is charged.
    """

    def __init__(
        self, completer: Completer, *, request: Request, api: str, streamed: bool, count_text: CountText
    ) -> None:
        state = request.app.state
        self._completer = completer
        self._metrics: Metrics = state.metrics
        self._lifecycle: Lifecycle = state.lifecycle
        self._ledger: UsageLedger = state.ledger
        self._rate_limits: RateLimits = state.rate_limits
        self._caller = caller_of(request)
        self._request_id = request_id(request)
        self._api = api
        self._streamed = streamed
        self._count_text = count_text

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """The events of the Completer within; closing this closes them. Raises DatabaseError where none is kept."""
        with self._lifecycle.running(), self._metrics.measure(self._api, request) as measured:
            usage = await self._ledger.open(
                self._caller, api=self._api, model=request.model or "", request_id=self._request_id
            )
            with _closing(usage):
                # A Completer's iterator is closed to cancel it, so it is a generator or behaves as one.
                events = cast(AsyncGenerator[Event], self._completer.stream(request))
                async with aclosing(events), aclosing(self._metered(events, usage)) as metered:
                    async for event in metered:
                        measured.observe(event)
                        yield event

    async def _metered(self, events: AsyncGenerator[Event], usage: OpenUsage) -> AsyncGenerator[Event]:
        count = AnswerCount(self._count_text)
        total = 0
        async for event in events:
            has_text = count.observe(event)
            tokens = {
                "prompt_tokens": count.prompt_tokens,
                "cached_tokens": count.cached_tokens,
                "completion_tokens": count.completion_tokens,
            }
            if isinstance(event, Started):
                usage.note(**tokens)
            elif isinstance(event, Usage):
                await usage.finish(**tokens)
            elif has_text and self._streamed:
                await usage.progress(**tokens)
            self._rate_limits.count_tokens(self._caller, count.total - total)
            total = count.total
            yield event


class Answer:
    """The events of one answer; the first has been read already."""

    def __init__(self, first: Event, rest: AsyncGenerator[Event]) -> None:
        self._first: Event | None = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        """Cancel what is left."""
        await self._rest.aclose()


async def open_answer(
    request: Request, asked: ChatRequest | TextRequest, *, api: str, through: Through | None = None
) -> Answer:
    """Begin to answer, for a stream: the first event has arrived, so what is refused is refused with a status."""
    events = metered_completer(request, api, streamed=True, through=through).stream(asked)
    try:
        first = await while_connected(request, _first(events))
    except BaseException:
        await events.aclose()
        raise
    return Answer(first, events)


async def whole_answer(
    request: Request, asked: ChatRequest | TextRequest, *, api: str, through: Through | None = None
) -> Completion:
    """Answer at once. The request is cancelled when the client leaves."""
    return await while_connected(request, complete(metered_completer(request, api, through=through), asked))


def metered_completer(
    request: Request, api: str, *, streamed: bool = False, through: Through | None = None
) -> MeteredCompleter:
    """The backend's Completer, metered, with `through` between. A 503 before the backend is ready: it has none yet."""
    backend: Backend = request.app.state.backend
    lifecycle: Lifecycle = request.app.state.lifecycle
    lifecycle.require_ready()
    completer = backend.completer if through is None else through(backend.completer)
    return MeteredCompleter(completer, request=request, api=api, streamed=streamed, count_text=backend.count_text)


def served_model(request: Request, name: str | None) -> ModelCard:
    """The model that a request names, by its id or an alias; the first where it names none.

    A 404 for a name that is none, and a 403 for a model that the caller's key may not ask.
    """
    settings: ServeSettings = request.app.state.settings
    models = visible_models(request)
    if name is None:
        if not models:
            raise _not_allowed(request)
        return models[0]
    wanted = settings.model_aliases.get(name, name)
    for model in models:
        if model.id == wanted:
            return model
    backend: Backend = request.app.state.backend
    if any(model.id == wanted for model in backend.models):
        raise _not_allowed(request)
    names = ", ".join([*(model.id for model in models), *settings.model_aliases])
    raise ApiError(
        f"the model {name!r} does not exist here; served: {names}", status=404, field="model", code="model_not_found"
    )


def visible_models(request: Request) -> list[ModelCard]:
    """The models that the caller may ask. A 503 where a server elsewhere has not said yet which it has."""
    backend: Backend = request.app.state.backend
    if not backend.models:
        lifecycle: Lifecycle = request.app.state.lifecycle
        lifecycle.require_ready()
    allowed = caller_of(request).models
    return [model for model in backend.models if allowed is None or model.id in allowed]


def _not_allowed(request: Request) -> ApiError:
    allowed = ", ".join(sorted(caller_of(request).models or ()))
    message = f"this key may not ask this model; it may ask {allowed}"
    return ApiError(message, status=403, field="model", code="model_not_allowed")


@contextmanager
def _closing(usage: OpenUsage) -> Generator[None]:
    """Close a row that was not finished, with what it counted last. Nobody waits for it: whoever asked is gone."""
    try:
        yield
    except Exception:
        usage.abandon("failed")
        raise
    finally:
        usage.abandon("cancelled")


async def _first(events: AsyncGenerator[Event]) -> Event:
    async for event in events:
        return event
    raise ApiError("the model gave no answer", status=500)
