"""What operators ask: alive, ready, and the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from chogori.serve.lifecycle import Lifecycle
from chogori.serve.metrics import Metrics

router = APIRouter(tags=["server"])


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "The model is still loading, or could not be loaded."}})
async def ready(request: Request) -> dict[str, str]:
    """Requests are answered."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    lifecycle.require_ready()
    return {"status": "ready"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Metrics in Prometheus' text format."}},
)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    counted: Metrics = request.app.state.metrics
    return Response(counted.render(), media_type=CONTENT_TYPE_LATEST)
