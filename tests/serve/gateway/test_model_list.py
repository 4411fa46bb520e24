"""Lists of models as each kind of server writes them."""

from __future__ import annotations

import pytest

from chogori.errors import BackendError
from chogori.serve.gateway.model_list import cards_of


@pytest.mark.parametrize(
    ("listed", "context_length"),
    [
        ({"id": "m", "created": 7, "owned_by": "vllm", "max_model_len": 131072, "root": "m"}, 131072),
        ({"id": "m", "created": 7, "owned_by": "moonshot", "context_length": 262144}, 262144),
        ({"id": "m", "created": 7, "owned_by": "llamacpp", "meta": {"n_ctx_train": 163840, "n_params": 5}}, 163840),
        ({"id": "m", "created": 7, "owned_by": "llamacpp", "meta": {"n_ctx_train": 163840, "n_ctx": 8192}}, 8192),
        ({"id": "m"}, None),
        ({"id": "m", "created": None, "owned_by": None, "context_length": None}, None),
        ({"id": "m", "max_model_len": 0, "context_length": "long"}, None),
    ],
)
def test_a_model_of_each_server(listed: dict[str, object], context_length: int | None) -> None:
    (card,) = cards_of({"object": "list", "data": [listed]})
    assert card.id == "m"
    assert card.context_length == context_length
    assert card.created == listed.get("created") or (not listed.get("created") and card.created > 0)
    assert card.owned_by == (listed.get("owned_by") or "unknown")


@pytest.mark.parametrize("reply", [None, [], {}, {"data": {}}, {"data": []}, {"data": [{"id": ""}, 3]}, "models"])
def test_what_lists_no_model_is_refused(reply: object) -> None:
    with pytest.raises(BackendError, match="list of models"):
        cards_of(reply)
