from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack

import anthropic
import pytest

from chogori.serve.backend import Backend
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend

Connect = Callable[..., anthropic.Anthropic]


@pytest.fixture
def connect() -> Generator[Connect]:
    """`connect(server)` is a client of the official SDK, at Moonshot's address or the one given; closed at the end."""
    with ExitStack() as stack:

        def open_client(server: LiveServer, address: str = "/anthropic") -> anthropic.Anthropic:
            client = anthropic.Anthropic(base_url=server.url + address, api_key="none", max_retries=0, timeout=20)
            return stack.enter_context(client)

        yield open_client


@pytest.fixture(scope="module")
def server_for_module(serve_for_module: Serve) -> LiveServer:
    return serve_for_module(ScriptedBackend.saying("Hi"))


@pytest.fixture
def serve(serve: Serve, server_for_module: LiveServer) -> Serve:
    """`serve`, but what asks for no settings of its own shares one server, whose backend is exchanged."""

    def start(backend: Backend, **changes: object) -> LiveServer:
        if changes:
            return serve(backend, **changes)
        server_for_module.app.state.backend = backend
        return server_for_module

    return start
