"""`GET /anthropic/v1/models` and `GET /anthropic/v1/models/{id}`; `/v1/models` itself is in OpenAI's shape."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request

from chogori.errors import RequestError
from chogori.serve.answering import served_model, visible_models
from chogori.serve.anthropic.response_models import ModelInfo, ModelPage, errors
from chogori.serve.anthropic.route import AnthropicRoute
from chogori.serve.backend import ModelCard
from chogori.serve.licence import KIMI_K2, LicenceSettings

router = APIRouter(tags=["models"], route_class=AnthropicRoute)


@router.get("/models", responses=errors(400))
async def list_models(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after_id: str | None = None,
    before_id: str | None = None,
) -> ModelPage:
    """The served models, page by page: those after a model, or the last ones before it."""
    cards = visible_models(request)
    first = 0 if after_id is None else _place(cards, after_id, "after_id") + 1
    end = len(cards) if before_id is None else _place(cards, before_id, "before_id")
    found = cards[first:end]
    page = found[:limit] if before_id is None else found[-limit:]
    return ModelPage(
        data=[_info(card, _licence(request)) for card in page],
        has_more=len(found) > len(page),
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
    )


@router.get("/models/{model:path}", responses=errors(404))
async def retrieve_model(request: Request, model: str) -> ModelInfo:
    """A served model, by its id or an alias."""
    return _info(served_model(request, model), _licence(request))


def _place(cards: list[ModelCard], name: str, field: str) -> int:
    ids = [card.id for card in cards]
    if name not in ids:
        raise RequestError(f"{field}: {name!r} is no served model; served: {', '.join(ids)}", field=field)
    return ids.index(name)


def _licence(request: Request) -> LicenceSettings:
    licence: LicenceSettings = request.app.state.settings.licence
    return licence


def _info(card: ModelCard, licence: LicenceSettings) -> ModelInfo:
    return ModelInfo(
        id=card.id,
        display_name=KIMI_K2 if licence.shows_name_of(card) else card.id,
        created_at=datetime.fromtimestamp(card.created, UTC),
        max_input_tokens=card.context_length,
    )
