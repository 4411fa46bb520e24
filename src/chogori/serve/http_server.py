"""Serving an application over HTTP until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import socket
from collections.abc import Awaitable, Callable

import h11
import uvicorn
import uvloop
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from chogori.errors import BackendError, ChogoriError, ConfigError
from chogori.serve.lifecycle import Lifecycle
from chogori.serve.settings import ServeSettings

MAX_HEADER_BYTES = 32_000
"""Room for the longest headers that browsers and gateways send; what is longer is answered with 400."""


def http_server(app: FastAPI, settings: ServeSettings) -> uvicorn.Server:
    """A server that listens when its `serve()` is awaited, and drains for `drain_timeout_s` when it is stopped."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
        timeout_keep_alive=75,  # browsers' and proxies' pools keep connections for about a minute
        proxy_headers=False,  # nothing here depends on the client's address
    )
    return uvicorn.Server(config)


class _Protocol(H11Protocol):
    """uvicorn's HTTP, but a body that cannot be read after its answer has begun just ends the connection.

    uvicorn tries to begin a second answer there, and its log shows a traceback for what is the client's mistake.
    """

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()


def listen(settings: ServeSettings) -> socket.socket:
    """The socket that `settings` name, listening. Raises ConfigError when it cannot be had, as where it is taken."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
        # Inherited by connections. asyncio sets it by itself only where a socket names its protocol, and this one does
        # not; without it the end of a response waits for the client's delayed acknowledgement, 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise ConfigError(
            f"{settings.host}, port {settings.port}, cannot be listened at: {os.strerror(error.errno or 0)}; name "
            "another port, such as --port 8001, or 0 for any free one"
        ) from error


WhenReady = Callable[[str], Awaitable[bool]]
"""Is given the server's address once requests are answered; whether the server is to go on."""


def run(app: FastAPI, settings: ServeSettings, when_ready: WhenReady | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, or until `when_ready` says so, then drain.

    Raises ConfigError when the port is taken, and when the model could not be started what its backend raised, or
    BackendError for what nobody foresaw.
    """
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(app, settings, when_ready))


async def _serve(app: FastAPI, settings: ServeSettings, when_ready: WhenReady | None) -> None:
    server = http_server(app, settings)
    lifecycle: Lifecycle = app.state.lifecycle
    with listen(settings) as listening:
        host, port = listening.getsockname()[:2]
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        settled = asyncio.create_task(lifecycle.settled.wait())
        await asyncio.wait([serving, settled], return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()
        # What is loaded stays; without this every full collection looks at all of it, and all streams wait.
        gc.collect()
        gc.freeze()
        if lifecycle.failure is not None:
            server.should_exit = True
        elif when_ready is not None and not serving.done():
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            goes_on = False
            try:
                goes_on = await when_ready(address)
            finally:
                server.should_exit = server.should_exit or not goes_on
                await serving
        await serving
    match lifecycle.failure:
        case None:
            pass
        case ChogoriError() as error:
            raise error
        case error:
            raise BackendError(f"the model could not be started: {error}") from error
