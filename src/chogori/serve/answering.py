"""The way of every request to the Completer, whichever API it came through: counted, and gone when its client is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from fastapi import Request

from chogori.chat.completer import ChatRequest, Completer, Completion, Event, TextRequest, complete
from chogori.serve.api_errors import ApiError
from chogori.serve.backend import Backend, ModelCard
from chogori.serve.connection import while_connected
from chogori.serve.lifecycle import Lifecycle
from chogori.serve.metrics import Metrics
from chogori.serve.settings import ServeSettings


class MeteredCompleter:
    """A Completer whose requests are counted and timed, under the name of the API that they came through."""

    def __init__(self, completer: Completer, *, metrics: Metrics, lifecycle: Lifecycle, api: str) -> None:
        self._completer = completer
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._api = api

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """The events of the Completer within; closing this closes them."""
        with self._lifecycle.running(), self._metrics.measure(self._api, request) as measured:
            # A Completer's iterator is closed to cancel it, so it is a generator or behaves as one.
            events = cast(AsyncGenerator[Event], self._completer.stream(request))
            async with aclosing(events):
                async for event in events:
                    measured.observe(event)
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


async def open_answer(request: Request, asked: ChatRequest | TextRequest, *, api: str) -> Answer:
    """Begin to answer, for a stream: the first event has arrived, so what is refused is refused with a status."""
    events = metered_completer(request, api).stream(asked)
    try:
        first = await while_connected(request, _first(events))
    except BaseException:
        await events.aclose()
        raise
    return Answer(first, events)


async def whole_answer(request: Request, asked: ChatRequest | TextRequest, *, api: str) -> Completion:
    """Answer at once. The request is cancelled when the client leaves."""
    return await while_connected(request, complete(metered_completer(request, api), asked))


def metered_completer(request: Request, api: str) -> MeteredCompleter:
    """The backend's Completer, counted under the name of an API. A 503 before the backend is ready: it has none yet."""
    state = request.app.state
    backend: Backend = state.backend
    metrics: Metrics = state.metrics
    lifecycle: Lifecycle = state.lifecycle
    lifecycle.require_ready()
    return MeteredCompleter(backend.completer, metrics=metrics, lifecycle=lifecycle, api=api)


def served_model(request: Request, name: str | None) -> ModelCard:
    """The model that a request names, by its id or an alias; the first where it names none. 404 for any other."""
    backend: Backend = request.app.state.backend
    settings: ServeSettings = request.app.state.settings
    if not backend.models:
        lifecycle: Lifecycle = request.app.state.lifecycle
        lifecycle.require_ready()  # a server elsewhere has not said yet which it has
    if name is None:
        return backend.models[0]
    wanted = settings.model_aliases.get(name, name)
    for model in backend.models:
        if model.id == wanted:
            return model
    names = ", ".join([*(model.id for model in backend.models), *settings.model_aliases])
    raise ApiError(
        f"the model {name!r} does not exist here; served: {names}", status=404, field="model", code="model_not_found"
    )


async def _first(events: AsyncGenerator[Event]) -> Event:
    async for event in events:
        return event
    raise ApiError("the model gave no answer", status=500)
