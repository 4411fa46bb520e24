"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from fastapi import APIRouter, Request

from chogori.serve.answering import served_model
from chogori.serve.backend import Backend, ModelCard
from chogori.serve.openai.response_models import ModelList, ModelObject, errors

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """All served models; the first answers requests that name none."""
    backend: Backend = request.app.state.backend
    return ModelList(data=[_model_object(card) for card in backend.models])


@router.get("/v1/models/{model:path}", responses=errors(404))
async def retrieve_model(request: Request, model: str) -> ModelObject:
    """A served model, by its id or an alias."""
    return _model_object(served_model(request, model))


def _model_object(card: ModelCard) -> ModelObject:
    return ModelObject(id=card.id, created=card.created, owned_by=card.owned_by, context_length=card.context_length)
