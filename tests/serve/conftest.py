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


@pytest.fixture
def serve(tmp_path: Path) -> Generator[Serve]:
    """`serve(backend, **settings)` starts a live server over a backend; all stop when the test ends."""
    with ExitStack() as stack:

        def start(backend: Backend, **changes: object) -> LiveServer:
            settings = ServeSettings(port=0, data_dir=tmp_path / "data", **changes)  # pyright: ignore[reportArgumentType]
            return stack.enter_context(LiveServer(create_app(backend, settings), settings))

        yield start
