"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from chogori.serve.answering import served_model, visible_models
from chogori.serve.backend import ModelCard
from chogori.serve.licence import KIMI_K2, LICENCE, LicenceSettings, name_headers
from chogori.serve.openai.response_models import ModelList, ModelObject, errors

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model_exclude_unset=True)
async def list_models(request: Request, response: Response) -> ModelList:
    """The served models that the caller may ask; the first answers requests that name none."""
    models = visible_models(request)
    licence: LicenceSettings = request.app.state.settings.licence
    response.headers.update(name_headers(licence, models))
    return ModelList(object="list", data=[_model_object(card, licence) for card in models])


@router.get("/v1/models/{model:path}", responses=errors(404), response_model_exclude_unset=True)
async def retrieve_model(request: Request, response: Response, model: str) -> ModelObject:
    """A served model, by its id or an alias."""
    card = served_model(request, model)
    licence: LicenceSettings = request.app.state.settings.licence
    response.headers.update(name_headers(licence, [card]))
    return _model_object(card, licence)


def _model_object(card: ModelCard, licence: LicenceSettings) -> ModelObject:
    shown = {"display_name": KIMI_K2, "licence": LICENCE} if licence.shows_name_of(card) else {}
    return ModelObject(
        id=card.id,
        object="model",
        created=card.created,
        owned_by=card.owned_by,
        context_length=card.context_length,
        **shown,
    )
