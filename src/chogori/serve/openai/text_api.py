"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import JSONResponse, Response

from chogori.chat.completer import Completion, Event, TextRequest, complete
from chogori.serve.answering import Answer, MeteredCompleter, metered_completer, open_answer, served_model
from chogori.serve.connection import EventStream, while_connected
from chogori.serve.envelope import request_id
from chogori.serve.openai.parameters import require_json
from chogori.serve.openai.response_models import ANSWER_ERRORS, TextCompletion
from chogori.serve.openai.text_answer import TextAnswer
from chogori.serve.openai.text_request import CompletionRequest

API = "openai_text"
PROMPTS_AT_ONCE = 16
"""How many prompts of one request are in the queue at a time, so that one client's list does not fill it."""

router = APIRouter(tags=["completions"], dependencies=[Depends(require_json)])


@router.post(
    "/v1/completions",
    response_model=None,
    responses={
        200: {
            "model": TextCompletion,
            "description": "The completions; with `stream`, their chunks as server-sent events.",
            "content": {"text/event-stream": {}},
        },
        **ANSWER_ERRORS,
    },
)
async def create_completion(request: Request, body: Annotated[CompletionRequest, Body()]) -> Response:
    """Continue one or several texts."""
    headers = body.ignored_headers()
    model = served_model(request, body.model)
    asked = body.text_requests(model=model.id, request_id=request_id(request))
    answer = TextAnswer(
        model=model.id,
        fingerprint=request.app.state.fingerprint,
        num_choices=asked[0].sampling.num_choices,
        logprobs=asked[0].sampling.logprobs,
        include_usage=body.include_usage,
    )
    completer = metered_completer(request, API, streamed=bool(body.stream))
    if body.stream:
        first = await open_answer(request, asked[0], api=API)
        events = _in_turn(first, completer, asked)
        return EventStream(answer.frames(events), first, headers=headers)
    completions = await while_connected(request, _all(completer, asked))
    return JSONResponse(answer.whole(completions), headers=headers)


async def _all(completer: MeteredCompleter, asked: Sequence[TextRequest]) -> list[Completion]:
    slots = asyncio.Semaphore(PROMPTS_AT_ONCE)

    async def one(request: TextRequest) -> Completion:
        async with slots:
            return await complete(completer, request)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in asked]
    except* Exception as errors:
        raise _first(errors) from None
    return [task.result() for task in tasks]


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _in_turn(
    first: Answer, completer: MeteredCompleter, asked: Sequence[TextRequest]
) -> AsyncGenerator[tuple[int, Event]]:
    """Events of a stream, prompt after prompt."""
    async for event in first:
        yield 0, event
    for i, request in enumerate(asked[1:], start=1):
        async with aclosing(completer.stream(request)) as events:
            async for event in events:
                yield i, event
