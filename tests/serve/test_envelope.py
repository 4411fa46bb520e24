"""What every request meets first, under servers other than ours too."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from chogori.serve.app import create_app
from chogori.serve.settings import ServeSettings
from tests.serve.scripted_backend import ScriptedBackend


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/models", 405),
        ("POST", "/v1/completions/", 307),
        ("GET", "/v1/models", 200),
    ],
)
@pytest.mark.parametrize("query", [b"\xff\xfe=1", "名=山".encode(), b"a=\xc3"])
def test_a_query_of_any_bytes_is_answered(tmp_path: Path, method: str, path: str, status: int, query: bytes) -> None:
    """Our own server refuses bytes that no URL may hold; others pass them on."""
    app = create_app(ScriptedBackend.saying("Hi"), ServeSettings(data_dir=tmp_path))
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == status
    if status in (404, 405):
        assert json.loads(sent[1]["body"])["error"]["type"] == "invalid_request_error"
