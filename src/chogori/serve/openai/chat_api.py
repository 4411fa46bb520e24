"""`POST /v1/chat/completions` and the count of a conversation's tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from chogori.chat.completer import ChatRequest, Completion, Usage
from chogori.serve.answering import open_answer, served_model, whole_answer
from chogori.serve.backend import Backend
from chogori.serve.caching.cache_use import hit_of, named_cache, owner_of
from chogori.serve.caching.context_caching import ContextCaching
from chogori.serve.connection import EventStream
from chogori.serve.envelope import request_id
from chogori.serve.gateway.tool_ranking import with_relevant_tools
from chogori.serve.lifecycle import Lifecycle
from chogori.serve.openai.chat_answer import ChatAnswer
from chogori.serve.openai.chat_request import ChatCompletionRequest, Messages, Tools, read_messages, read_tools
from chogori.serve.openai.parameters import require_json
from chogori.serve.openai.response_models import ANSWER_ERRORS, ChatCompletion, TokenEstimate
from chogori.serve.repairs import begun, repair_headers
from chogori.serve.settings import ServeSettings

API = "openai_chat"
NOTHING = Completion(choices=(), usage=Usage(prompt_tokens=0, completion_tokens=0))
"""What a dry run answers, whole also where a stream was asked for: nothing runs, so nothing is to be awaited."""
router = APIRouter(tags=["chat"], dependencies=[Depends(require_json)])


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses={
        200: {
            "model": ChatCompletion,
            "description": "The answer; with `stream`, its chunks as server-sent events.",
            "content": {"text/event-stream": {}},
        },
        **ANSWER_ERRORS,
    },
)
async def create_chat_completion(request: Request, body: Annotated[ChatCompletionRequest, Body()]) -> Response:
    """Answer a conversation. It may begin with a message of role `cache`, or name a context cache by headers."""
    headers = body.ignored_headers()
    settings: ServeSettings = request.app.state.settings
    caching: ContextCaching = request.app.state.caching
    named = await named_cache(caching, owner_of(request), body, request.headers)
    if named is not None:
        body = named.body
    model = served_model(request, body.model)
    asked = body.chat_request(
        model=model.id, request_id=request_id(request), default_temperature=settings.default_temperature
    )
    if named is None:
        ranked = with_relevant_tools(asked, settings.tools)
        asked, headers = ranked.request, {**headers, **ranked.headers}
    else:  # the tools of a cache are those that it was made with
        asked = replace(asked, cache_key=named.cache.id)
    answer = ChatAnswer(
        asked=asked,
        model=model.id,
        fingerprint=request.app.state.fingerprint,
        include_usage=body.include_usage,
    )
    hit = None if named is None else await hit_of(caching, named, asked, request_id=request_id(request))
    headers |= {} if hit is None else hit.headers
    if named is not None and named.reference.is_dry_run:
        return JSONResponse(answer.whole(NOTHING), headers=headers)
    through = None if hit is None else hit.through
    if body.stream:
        source = await open_answer(request, asked, api=API, through=through)
        opened = await begun(source)
        return EventStream(answer.frames(opened.events), source, headers=headers | opened.headers)
    completion = await whole_answer(request, asked, api=API, through=through)
    return JSONResponse(answer.whole(completion), headers=headers | repair_headers(completion.repairs))


class TokenEstimateRequest(BaseModel):
    """A conversation to count; whatever else a chat completion takes may stand beside it and counts nothing."""

    model_config = ConfigDict(strict=True)
    messages: Messages
    model: str | None = None
    tools: Tools | None = None


@router.post("/v1/tokenizers/estimate-token-count", responses=ANSWER_ERRORS)
async def estimate_token_count(request: Request, body: Annotated[TokenEstimateRequest, Body()]) -> TokenEstimate:
    """Tokens of a conversation as the model reads it (Moonshot's API); exact."""
    backend: Backend = request.app.state.backend
    lifecycle: Lifecycle = request.app.state.lifecycle
    lifecycle.require_ready()
    model = served_model(request, body.model)
    asked = ChatRequest(messages=read_messages(body.messages), tools=read_tools(body.tools or []), model=model.id)
    settings: ServeSettings = request.app.state.settings
    asked = with_relevant_tools(asked, settings.tools).request
    num_tokens = await run_in_threadpool(backend.count_tokens, asked)
    data: dict[str, Any] = {"total_tokens": num_tokens}
    return TokenEstimate.model_validate({"data": data})
