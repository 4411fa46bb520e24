from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from chogori.serve.app import create_app
from chogori.serve.backend import Backend
from chogori.serve.settings import ServeSettings
from tests.serve.live_server import LiveServer

Serve = Callable[..., LiveServer]


def servers(folder: Path) -> Generator[Serve]:
    """A function that starts a live server over a backend, with settings; all of them stop at the end."""
    with ExitStack() as stack:

        def start(backend: Backend, **changes: object) -> LiveServer:
            settings = ServeSettings(port=0, data_dir=folder, **changes)  # pyright: ignore[reportArgumentType]
            return stack.enter_context(LiveServer(create_app(backend, settings), settings))

        yield start


@pytest.fixture
def serve(tmp_path: Path) -> Generator[Serve]:
    """`serve(backend, **settings)` starts a live server for one test."""
    yield from servers(tmp_path / "data")


@pytest.fixture(scope="module")
def serve_for_module(tmp_path_factory: pytest.TempPathFactory) -> Generator[Serve]:
    """`serve`, for servers that all tests of a module share: starting and stopping one takes 0.2 seconds."""
    yield from servers(tmp_path_factory.mktemp("data"))
