from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from chogori.serve.app import create_app
from chogori.serve.backend import Backend
from chogori.serve.settings import ServeSettings
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend

Serve = Callable[..., LiveServer]


def servers(folder: Path) -> Generator[Serve]:
    """A function that starts a live server over a backend, with settings; all of them stop at the end."""
    with ExitStack() as stack:

        def start(backend: Backend, **changes: object) -> LiveServer:
            settings = ServeSettings(port=0, data_dir=folder, **changes)  # pyright: ignore[reportArgumentType]
            return stack.enter_context(LiveServer(create_app(backend, settings), settings))

        yield start


@pytest.fixture
def fresh_serve(tmp_path: Path) -> Generator[Serve]:
    """`fresh_serve(backend, **settings)` starts a live server for one test."""
    yield from servers(tmp_path / "data")


@pytest.fixture
def serve(fresh_serve: Serve) -> Serve:
    """`fresh_serve`, where a folder's tests do not share servers."""
    return fresh_serve


@pytest.fixture(scope="module")
def serve_for_module(tmp_path_factory: pytest.TempPathFactory) -> Generator[Serve]:
    """`serve`, for servers that all tests of a module share: starting and stopping one takes 0.2 seconds."""
    yield from servers(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def server_for_module(serve_for_module: Serve) -> LiveServer:
    return serve_for_module(ScriptedBackend.saying("Hi"))


@pytest.fixture
def shared_serve(fresh_serve: Serve, server_for_module: LiveServer) -> Serve:
    """`fresh_serve`, but what asks for no settings of its own shares one server, whose backend is exchanged."""

    def start(backend: Backend, **changes: object) -> LiveServer:
        if changes:
            return fresh_serve(backend, **changes)
        server_for_module.app.state.backend = backend
        return server_for_module

    return start
