"""The list of models as the official SDK sees it."""

from __future__ import annotations

import openai
import pytest

from chogori.serve.backend import ModelCard
from tests.serve.conftest import Serve
from tests.serve.scripted_backend import ScriptedBackend


def test_models_are_listed_and_found_by_id_with_slashes_and_by_alias(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    card = ModelCard(id="moonshotai/Kimi-K2", created=1_752_000_000, owned_by="moonshotai", context_length=131_072)
    backend.models = (*backend.models, card)
    server = serve(backend, model_aliases={"kimi-k2": card.id})
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["kimi-test", card.id]
    for name in (card.id, "kimi-k2"):
        found = client.models.retrieve(name).model_dump()
        assert (found["id"], found["owned_by"], found["context_length"]) == (card.id, "moonshotai", 131_072)
    with pytest.raises(openai.NotFoundError, match="served: kimi-test, moonshotai/Kimi-K2, kimi-k2"):
        client.models.retrieve("gpt-4")
