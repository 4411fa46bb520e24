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
KEEP_ALIVE_S = 15.0
"""Silence after which an event stream says that it lives: proxies commonly end connections after 60 seconds of it."""
KEEP_ALIVE = b": keep-alive\n\n"
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left; it stands in metrics only, since nobody reads the answer."""


TURNS_OF_A_DEPARTURE = 3
"""Turns of the event loop until a socket's end is known: the transport's close, the server's note of it, its reader."""


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
    no buffer here. Where there is none for long, a comment keeps the connection open. When the client leaves or the
    server stops, `frames` and `source` are closed at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        source: Closable,
        *,
        headers: Mapping[str, str] | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        # x-accel-buffering: nginx would collect events otherwise.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._frames = frames
        self._source = source
        self._keep_alive_s = keep_alive_s
        self._written_at = 0.0
        self._is_writing = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        departure = asyncio.create_task(_departure(receive))
        writing = asyncio.create_task(self._write(send, departure))
        living = asyncio.create_task(self._keep_alive(send))
        try:
            await asyncio.wait({writing, departure}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                with contextlib.suppress(OSError):  # how some servers say that the client left
                    writing.result()
        finally:
            await _cancel(writing, departure, living)
            await self._frames.aclose()
            await self._source.aclose()

    async def _write(self, send: Send, departure: asyncio.Task[None]) -> None:
        clock = asyncio.get_running_loop().time
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._is_writing, self._written_at = False, clock()
        async for frame in self._frames:
            self._is_writing = True
            await send({"type": "http.response.body", "body": frame, "more_body": True})
            self._is_writing, self._written_at = False, clock()
            # Neither need have waited for anything: let others run, and notice that the client has left before another
            # frame is made for it.
            for _ in range(TURNS_OF_A_DEPARTURE):
                await asyncio.sleep(0)
            if departure.done():
                return
        self._is_writing = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            silent_s = 0.0 if self._is_writing else clock() - self._written_at
            await asyncio.sleep(self._keep_alive_s - min(silent_s, self._keep_alive_s))
            if not self._is_writing and clock() - self._written_at >= self._keep_alive_s:
                self._written_at = clock()
                with contextlib.suppress(OSError):
                    await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
