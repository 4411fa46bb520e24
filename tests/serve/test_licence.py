"""Where Kimi K2's licence asks for its name, every list and page shows it; elsewhere none does."""

import json
import re
from pathlib import Path

import httpx
import pytest

from chogori.cli.local_model import LocalBackend, ModelName
from chogori.engine.config import EngineConfig
from chogori.model.config import K2Config
from chogori.serve.backend import ModelCard
from chogori.serve.licence import LicenceSettings
from tests.serve.conftest import Serve
from tests.serve.scripted_backend import ScriptedBackend

TERMS = LicenceSettings(kimi_k2_terms=True)
PAGES = ("/", "/docs", "/redoc")


def card(name: str, **fields: bool) -> ModelCard:
    return ModelCard(id=name, created=1, owned_by="me", context_length=10, **fields)


@pytest.mark.parametrize("name", ["kimi-k2", "moonshotai/Kimi-K2-Instruct-0905", "kimi_k2", "KimiK2-int4"])
def test_its_name_gives_it_away(name: str) -> None:
    assert TERMS.shows_name_of(card(name))
    assert not LicenceSettings().shows_name_of(card(name)), "below the licence's thresholds nothing is asked"
    assert not LicenceSettings(kimi_k2_terms=True, model="other").shows_name_of(card(name))


def test_other_models_are_not_it_unless_the_operator_says_so() -> None:
    for name in ("kimi-latest", "moonshot-v1-8k", "k2", "nano"):
        assert not TERMS.shows_name_of(card(name))
        assert LicenceSettings(kimi_k2_terms=True, model="kimi-k2").shows_name_of(card(name))
    assert TERMS.shows_name_of(card("our-assistant", has_kimi_k2_sizes=True))


def test_its_sizes_give_it_away_at_any_context(tmp_path: Path) -> None:
    name = ModelName(folder=tmp_path, preset=None)
    official = K2Config.preset("kimi-k2")
    for sizes, expected in (
        (official, True),
        (official.replace(max_position_embeddings=4096), True),
        (official.replace(sequence_balance_weight=0.001), True),  # as its config.json has it
        (official.replace(num_experts=256), False),
        (K2Config.preset("tiny"), False),
    ):
        backend = LocalBackend(name, sizes, EngineConfig())
        assert backend.models[0].has_kimi_k2_sizes is expected


def test_with_its_terms_every_list_and_page_says_kimi_k2(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    backend.models = [card("kimi-k2-0905"), card("nano")]
    server = serve(backend, licence=TERMS)
    listed = httpx.get(f"{server.url}/v1/models")
    first, second = listed.json()["data"]
    assert (first["display_name"], first["licence"]) == ("Kimi K2", "Modified MIT (Kimi K2)")
    assert "display_name" not in second
    assert listed.headers["x-model-display-name"] == "Kimi K2"
    assert httpx.get(f"{server.url}/v1/models/kimi-k2-0905").json()["display_name"] == "Kimi K2"
    assert "x-model-display-name" not in httpx.get(f"{server.url}/v1/models/nano").headers
    names = [model["display_name"] for model in httpx.get(f"{server.url}/anthropic/v1/models").json()["data"]]
    assert names == ["Kimi K2", "nano"]
    for path in PAGES:
        page = httpx.get(server.url + path)
        assert "<title>Kimi K2 · Chogori</title>" in re.sub(r" - (Swagger UI|ReDoc)", "", page.text), path
        assert page.headers["x-model-display-name"] == "Kimi K2"
    assert '<p class="model-name">Kimi K2</p>' in httpx.get(server.url).text
    assert httpx.get(f"{server.url}/openapi.json").json()["info"]["title"] == "Kimi K2 · Chogori"


def test_without_them_none_does(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    backend.models = [card("kimi-k2-0905")]
    server = serve(backend)
    for path in (*PAGES, "/v1/models", "/openapi.json"):
        response = httpx.get(server.url + path)
        assert "Kimi K2" not in response.text
        assert "x-model-display-name" not in response.headers
    assert set(json.loads(httpx.get(f"{server.url}/v1/models").text)["data"][0]) == {
        "id",
        "object",
        "created",
        "owned_by",
        "context_length",
    }
