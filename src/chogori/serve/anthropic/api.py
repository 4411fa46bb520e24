"""All endpoints of Anthropic's API. Messages have the address of Anthropic's own server, and Moonshot's too."""

from __future__ import annotations

from fastapi import APIRouter

from chogori.serve.anthropic import messages_api, models_api

router = APIRouter()
router.include_router(messages_api.router, prefix="/v1")
router.include_router(messages_api.router, prefix="/anthropic/v1")
router.include_router(models_api.router, prefix="/anthropic/v1")
