"""`POST /v1/messages` and `POST /v1/messages/count_tokens`, also under `/anthropic`."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from chogori.chat.completer import ChatRequest
from chogori.serve.answering import metered_completer, open_answer, served_model
from chogori.serve.anthropic.cache_marks import marked_prompt
from chogori.serve.anthropic.message_answer import MessageAnswer, Object
from chogori.serve.anthropic.message_request import CountTokensRequest, MessageRequest
from chogori.serve.anthropic.response_models import ANSWER_ERRORS, AnsweredMessage, TokenCount
from chogori.serve.anthropic.route import AnthropicRoute
from chogori.serve.backend import Backend
from chogori.serve.connection import EventStream, while_connected
from chogori.serve.envelope import request_id
from chogori.serve.gateway.tool_ranking import with_relevant_tools
from chogori.serve.lifecycle import Lifecycle
from chogori.serve.openai.parameters import require_json
from chogori.serve.repairs import begun, repair_headers
from chogori.serve.settings import ServeSettings

API = "anthropic_messages"
router = APIRouter(tags=["messages"], route_class=AnthropicRoute, dependencies=[Depends(require_json)])


@router.post(
    "/messages",
    response_model=None,
    responses={
        200: {
            "model": AnsweredMessage,
            "description": "The answer; with `stream`, its blocks as server-sent events.",
            "content": {"text/event-stream": {}},
        },
        **ANSWER_ERRORS,
    },
)
async def create_message(request: Request, body: Annotated[MessageRequest, Body()]) -> Response:
    """Answer a conversation."""
    settings: ServeSettings = request.app.state.settings
    headers = body.ignored_headers()
    model = served_model(request, body.model)
    sampling = body.sampling(temperature_factor=settings.anthropic_temperature_factor)
    asked = body.chat_request(model=model.id, request_id=request_id(request), sampling=sampling)
    ranked = with_relevant_tools(asked, settings.tools)
    asked, headers = ranked.request, {**headers, **ranked.headers}
    marked = marked_prompt(body, model=model.id)
    answer = MessageAnswer(
        model=model.id,
        request_id=request_id(request),
        marked_tokens=await _count(request, marked) if marked is not None else 0,
    )
    if body.stream:
        source = await open_answer(request, asked, api=API)
        opened = await begun(source)
        return EventStream(answer.frames(opened.events), source, headers=headers | opened.headers)
    message = await while_connected(request, _whole(request, asked, answer))
    return JSONResponse(message, headers=headers | repair_headers(answer.repairs))


@router.post("/messages/count_tokens", responses=ANSWER_ERRORS)
async def count_tokens(request: Request, body: Annotated[CountTokensRequest, Body()]) -> TokenCount:
    """Tokens of a conversation as the model reads it; exact."""
    asked = body.chat_request(model=served_model(request, body.model).id)
    return TokenCount(input_tokens=await _count(request, asked))


async def _whole(request: Request, asked: ChatRequest, answer: MessageAnswer) -> Object:
    async with aclosing(metered_completer(request, API).stream(asked)) as events:
        return await answer.whole(events)


async def _count(request: Request, asked: ChatRequest) -> int:
    backend: Backend = request.app.state.backend
    lifecycle: Lifecycle = request.app.state.lifecycle
    lifecycle.require_ready()
    settings: ServeSettings = request.app.state.settings
    asked = with_relevant_tools(asked, settings.tools).request
    return await run_in_threadpool(backend.count_tokens, asked)
