"""A server on a real loopback socket, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from types import TracebackType

from fastapi import FastAPI

from chogori.serve.http_server import http_server
from chogori.serve.settings import ServeSettings


@dataclass
class LiveServer:
    """`with LiveServer(app, settings) as server:` serves until the block ends, then drains."""

    app: FastAPI
    settings: ServeSettings

    def __enter__(self) -> LiveServer:
        self._server = http_server(self.app, self.settings)
        self._listening = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="live server")
        self._thread.start()
        assert self._listening.wait(10), "the server did not begin to listen"
        return self

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self._server.serve())
        try:
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.002)
        finally:
            self._listening.set()
        await serving

    def begin_to_stop(self) -> None:
        """What SIGTERM does."""
        self._server.should_exit = True

    def join(self) -> None:
        """Wait until the server is gone."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not stop"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.begin_to_stop()
        self.join()

    @property
    def port(self) -> int:
        return self._server.servers[0].sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def in_loop(self, event: asyncio.Event) -> None:
        """Set an event that the server's loop waits for."""
        self._loop.call_soon_threadsafe(event.set)
