"""The client at the other end: work that ends when it leaves, and event streams that never run ahead of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chogori.serve.api_errors import ApiError

T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left; it stands in metrics only, since nobody reads the answer."""


class Closable(Protocol):
    """What must be closed, whether or not it was ever begun."""

    async def aclose(self) -> None: ...


async def while_connected(request: Request, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client leaves. The body must have been read."""
    task = asyncio.create_task(work)
    departure = asyncio.create_task(_departure(request.receive))
    try:
        await asyncio.wait({task, departure}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("the client left", status=CLIENT_CLOSED_REQUEST)
        return task.result()
    finally:
        await _cancel(task, departure)


class EventStream(Response):
    """Server-sent events from `frames`.

    Each frame is written before the next is asked for, so a slow client holds up nothing but its own answer and fills
    no buffer here. When the client leaves or the server stops, `frames` and `source` are closed at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        source: Closable,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # x-accel-buffering: nginx would collect events otherwise.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._frames = frames
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send))
        departure = asyncio.create_task(_departure(receive))
        try:
            await asyncio.wait({writing, departure}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                with contextlib.suppress(OSError):  # how some servers say that the client left
                    writing.result()
        finally:
            await _cancel(writing, departure)
            await self._frames.aclose()
            await self._source.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
            # Neither need have waited for anything: let others run, and notice that the client has left.
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
