"""Serving an application over HTTP until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import math

import uvicorn
from fastapi import FastAPI

from chogori.errors import BackendError
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
        http="h11",
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


def run(app: FastAPI, settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain.

    Raises BackendError when the model could not be started, and SystemExit when the port is taken.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(app, settings))


async def _serve(app: FastAPI, settings: ServeSettings) -> None:
    server = http_server(app, settings)
    lifecycle: Lifecycle = app.state.lifecycle

    async def stop_when_failed() -> None:
        await lifecycle.failed.wait()
        server.should_exit = True

    watch = asyncio.create_task(stop_when_failed())
    try:
        await server.serve()
    finally:
        watch.cancel()
    if lifecycle.failed.is_set():
        raise BackendError(f"the model could not be started: {lifecycle.failure}") from lifecycle.failure
