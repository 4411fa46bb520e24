from __future__ import annotations

import pytest

from chogori.serve.backend import Backend
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend


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
