"""`POST /v1/responses`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import aclosing, contextmanager
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import JSONResponse, Response

from chogori.chat.completer import ChatRequest
from chogori.errors import RequestError
from chogori.serve.answering import metered_completer, open_answer, served_model
from chogori.serve.connection import EventStream, while_connected
from chogori.serve.envelope import request_id
from chogori.serve.gateway.tool_ranking import with_relevant_tools
from chogori.serve.openai.parameters import require_json
from chogori.serve.openai.response_models import ANSWER_ERRORS
from chogori.serve.repairs import begun, repair_headers
from chogori.serve.responses.output_items import Object
from chogori.serve.responses.response_answer import ResponseAnswer
from chogori.serve.responses.response_models import ResponseObject
from chogori.serve.responses.response_request import ResponseRequest
from chogori.serve.settings import ServeSettings

API = "openai_responses"
_FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format.schema",
}
router = APIRouter(tags=["responses"], dependencies=[Depends(require_json)])


@router.post(
    "/v1/responses",
    response_model=None,
    responses={
        200: {
            "model": ResponseObject,
            "description": "The response; with `stream`, its events as server-sent events.",
            "content": {"text/event-stream": {}},
        },
        **ANSWER_ERRORS,
    },
)
async def create_response(request: Request, body: Annotated[ResponseRequest, Body()]) -> Response:
    """Answer a conversation of items."""
    headers = body.ignored_headers()
    settings: ServeSettings = request.app.state.settings
    model = served_model(request, body.model)
    asked = body.chat_request(
        model=model.id, request_id=request_id(request), default_temperature=settings.default_temperature
    )
    answer = ResponseAnswer(parameters=body.echo(asked))
    ranked = with_relevant_tools(asked, settings.tools)
    asked, headers = ranked.request, {**headers, **ranked.headers}
    with _fields_as_named_here():
        if body.stream:
            source = await open_answer(request, asked, api=API)
            opened = await begun(source)
            return EventStream(answer.frames(opened.events), source, headers=headers | opened.headers)
        response = await while_connected(request, _whole(request, asked, answer))
        return JSONResponse(response, headers=headers | repair_headers(answer.repairs))


async def _whole(request: Request, asked: ChatRequest, answer: ResponseAnswer) -> Object:
    async with aclosing(metered_completer(request, API).stream(asked)) as events:
        return await answer.whole(events)


@contextmanager
def _fields_as_named_here() -> Generator[None]:
    """A Completer names parameters as chat completions do; its refusals are told in the names of this API."""
    try:
        yield
    except RequestError as error:
        field = error.field or ""
        name = _FIELDS.get(field)
        if name is None:
            raise
        message = str(error)
        message = name + message[len(field) :] if message.startswith(field) else message
        raise type(error)(message, field=name) from error
