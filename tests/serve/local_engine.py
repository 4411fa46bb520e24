"""The real engine behind a live server: a tiny model with random weights, and what its tests wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from chogori.cli.local_model import LocalBackend, ModelName
from chogori.engine.config import EngineConfig
from tests.serve.live_server import LiveServer

CONTEXT_LENGTH = 8_192


def local_backend(
    *, max_running: int = 64, max_waiting: int = 512, context_length: int = CONTEXT_LENGTH
) -> LocalBackend:
    """The model, with a queue of this size. Its weights are loaded when its server starts."""
    name = ModelName.parse("tiny:random")
    config = EngineConfig(num_threads=1, max_running=max_running, max_waiting=max_waiting)
    return LocalBackend(name, name.sizes(context_length), config)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def ready(server: LiveServer) -> LiveServer:
    """The server, once its model is loaded."""
    eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 200)
    return server


def is_idle(backend: LocalBackend) -> bool:
    """Whether nothing runs, waits or holds a block of the cache."""
    gauges = backend.gauges()
    return (gauges.running, gauges.waiting, gauges.cache_tokens_used) == (0, 0, 0)
