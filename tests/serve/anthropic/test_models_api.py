"""The list of models in Anthropic's shape, as the official SDK pages through it."""

from __future__ import annotations

import anthropic
import httpx
import pytest

from chogori.serve.backend import ModelCard
from tests.serve.anthropic.conftest import Connect
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend


@pytest.fixture
def server(serve: Serve) -> LiveServer:
    backend = ScriptedBackend.saying("Hi")
    backend.models = [
        ModelCard(id=name, created=1_700_000_000, owned_by="chogori", context_length=4096) for name in "abcde"
    ]
    return serve(backend)


@pytest.mark.parametrize("limit", [1, 2, 5, 20])
def test_the_sdk_pages_through_all_models(server: LiveServer, connect: Connect, limit: int) -> None:
    assert [model.id for model in connect(server).models.list(limit=limit)] == list("abcde")


def test_a_model(server: LiveServer, connect: Connect) -> None:
    model = connect(server).models.retrieve("c")
    assert (model.id, model.type, model.lifecycle, model.max_input_tokens) == ("c", "model", "active", 4096)
    assert model.created_at.isoformat() == "2023-11-14T22:13:20+00:00"
    with pytest.raises(anthropic.NotFoundError, match="'z' does not exist here"):
        connect(server).models.retrieve("z")


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ("", "abcde", False),
        ("limit=2", "ab", True),
        ("limit=2&after_id=b", "cd", True),
        ("limit=2&after_id=c", "de", False),
        ("after_id=e", "", False),
        ("limit=2&before_id=d", "bc", True),
        ("limit=2&before_id=c", "ab", False),
    ],
)
def test_pages(server: LiveServer, query: str, ids: str, has_more: bool) -> None:
    page = httpx.get(f"{server.url}/anthropic/v1/models?{query}").json()
    assert "".join(model["id"] for model in page["data"]) == ids
    assert (page["has_more"], page["first_id"], page["last_id"]) == (has_more, ids[:1] or None, ids[-1:] or None)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "after_id=z", "before_id=z"])
def test_pages_that_cannot_be(server: LiveServer, query: str) -> None:
    response = httpx.get(f"{server.url}/anthropic/v1/models?{query}")
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith(query.partition("=")[0])
