"""All endpoints of the OpenAI API."""

from __future__ import annotations

from fastapi import APIRouter

from chogori.serve.openai import chat_api, files_api, models_api, text_api

router = APIRouter()
for part in (chat_api, text_api, models_api, files_api):
    router.include_router(part.router)
