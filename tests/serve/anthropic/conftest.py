from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack

import anthropic
import pytest

from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer

Connect = Callable[..., anthropic.Anthropic]


@pytest.fixture
def connect() -> Generator[Connect]:
    """`connect(server)` is a client of the official SDK, at Moonshot's address or the one given; closed at the end."""
    with ExitStack() as stack:

        def open_client(server: LiveServer, address: str = "/anthropic") -> anthropic.Anthropic:
            client = anthropic.Anthropic(base_url=server.url + address, api_key="none", max_retries=0, timeout=20)
            return stack.enter_context(client)

        yield open_client


@pytest.fixture
def serve(shared_serve: Serve) -> Serve:
    """Tests of one API share a server."""
    return shared_serve
