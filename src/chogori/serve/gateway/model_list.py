"""The models that an OpenAI-compatible server lists, in the words of each kind of server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from chogori.errors import BackendError
from chogori.serve.backend import ModelCard

# Chogori and Moonshot; vLLM and SGLang; llama.cpp keeps them in `meta`: what a slot has, else what the model had.
_CONTEXT_FIELDS = ("context_length", "max_model_len", "n_ctx", "n_ctx_train")


def cards_of(reply: object) -> list[ModelCard]:
    """Read the reply of `GET /v1/models`. Raises BackendError where it lists no model."""
    listed = _fields(reply).get("data")
    cards = list(_cards(cast(Sequence[object], listed))) if isinstance(listed, list) else []
    if not cards:
        raise BackendError(f'its list of models is {str(reply)[:200]!r}; expected {{"data": [{{"id": …}}, …]}}')
    return cards


def _cards(listed: Sequence[object]) -> Iterator[ModelCard]:
    for model in map(_fields, listed):
        name, created, owner = model.get("id"), model.get("created"), model.get("owned_by")
        if isinstance(name, str) and name:
            yield ModelCard(
                id=name,
                # Some list models without a time; clients require one.
                created=created if isinstance(created, int) else int(time.time()),
                owned_by=owner if isinstance(owner, str) and owner else "unknown",
                context_length=_context_length(model),
            )


def _context_length(model: Mapping[str, object]) -> int | None:
    told = {**_fields(model.get("meta")), **model}
    for name in _CONTEXT_FIELDS:
        value = told.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _fields(value: object) -> Mapping[str, object]:
    return cast(Mapping[str, object], value) if isinstance(value, Mapping) else {}
