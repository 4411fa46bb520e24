"""The body of `POST /v1/chat/completions`, and the request it asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool, ToolChoice
from chogori.chat.messages import JSON, Message, ToolSpec, messages_from_openai, tools_from_openai
from chogori.errors import MessageError, RequestError
from chogori.serve.api_errors import ApiError
from chogori.serve.openai.parameters import SamplingParameters, Tokens, Whole
from chogori.serve.openai.wire_schemas import MESSAGE, MESSAGE_OR_CACHE, TOOL

MAX_TOOLS = 128
_PATH = re.compile(r"(messages|tools)\[\d+\][\w.\[\]]*")

# Messages and tools are read by `chat.messages`, which knows their rules; here they are objects.
Messages = Annotated[
    list[dict[str, Any]], Field(min_length=1), WithJsonSchema({"type": "array", "minItems": 1, "items": MESSAGE})
]
MessagesAfterCache = Annotated[
    list[dict[str, Any]],
    Field(min_length=1),
    WithJsonSchema({"type": "array", "minItems": 1, "items": MESSAGE_OR_CACHE}),
]
"""Their first may stand for a context cache; `serve.caching` puts its messages in that place."""
Tools = Annotated[
    list[dict[str, Any]],
    Field(max_length=MAX_TOOLS),
    WithJsonSchema({"type": "array", "maxItems": MAX_TOOLS, "items": TOOL}),
]
Strict = ConfigDict(strict=True)


class FunctionName(BaseModel):
    """The function of a named tool choice."""

    model_config = Strict
    name: str


class NamedToolChoice(BaseModel):
    """The tool that must be called."""

    model_config = Strict
    type: Literal["function", "builtin_function"] = "function"
    function: FunctionName


class JsonSchema(BaseModel):
    """A schema that the answer satisfies."""

    model_config = Strict
    name: str = Field("answer", description="For people; has no effect.")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="The schema is always enforced.")


class ResponseFormat(BaseModel):
    """What the answer's text is."""

    model_config = Strict
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatCompletionRequest(SamplingParameters):
    """A conversation to answer, in OpenAI's shape with Moonshot's extras."""

    messages: MessagesAfterCache
    max_completion_tokens: Tokens | None = None
    tools: Tools | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = None
    store: bool | None = Field(None, description="Only false: completions are not kept.")
    modalities: list[Literal["text"]] | None = None

    def chat_request(self, *, model: str, request_id: str, default_temperature: float) -> ChatRequest:
        """What is asked of the Completer. Raises RequestError that names the parameter at fault."""
        if self.store:
            raise RequestError("store is true; this server keeps no completions, expected false", field="store")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs is set, but logprobs is not true", field="top_logprobs")
        return ChatRequest(
            messages=read_messages(self.messages),
            tools=read_tools(self.tools or []),
            tool_choice=self._tool_choice(),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_format=self._response_format(),
            sampling=self.sampling(
                max_tokens=self._max_tokens(),
                default_temperature=default_temperature,
                logprobs=self.logprobs is True,
                top_logprobs=self.top_logprobs or 0,
            ),
            model=model,
            request_id=request_id,
        )

    def _max_tokens(self) -> int | None:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise RequestError(
                f"max_tokens is {old} and max_completion_tokens {new}; expected one of them, they mean the same",
                field="max_tokens",
            )
        return new if new is not None else old

    def _tool_choice(self) -> ToolChoice:
        choice = self.tool_choice
        if isinstance(choice, NamedToolChoice):
            return NamedTool(name=choice.function.name)
        return choice or "auto"

    def _response_format(self) -> JsonFormat | None:
        match self.response_format:
            case None | ResponseFormat(type="text"):
                return None
            case ResponseFormat(type="json_object"):
                return JsonFormat()
            case ResponseFormat(json_schema=schema):
                if schema is None or schema.schema_ is None:
                    raise RequestError(
                        "response_format.json_schema.schema is missing; expected a JSON schema",
                        field="response_format.json_schema.schema",
                    )
                return JsonFormat(schema=schema.schema_)


def read_messages(values: list[dict[str, Any]]) -> list[Message]:
    """The messages of a request. Raises RequestError that names the field."""
    for i, value in enumerate(values):
        if not isinstance(value.get("partial"), bool | None):
            raise RequestError(f"messages[{i}].partial is not true or false", field=f"messages[{i}].partial")
        if value.get("content") is None and value.get("role") in ("system", "developer", "user", "tool"):
            field = f"messages[{i}].content"
            raise ApiError(
                f"Missing required parameter: '{field}'.", status=400, field=field, code="missing_required_parameter"
            )
    try:
        return messages_from_openai(values)
    except MessageError as error:
        raise _located(error, "messages") from None


def read_tools(values: list[dict[str, Any]]) -> list[ToolSpec]:
    """The tools of a request, Moonshot's built-in functions included. Raises RequestError that names the field."""
    try:
        return tools_from_openai([_with_free_arguments(value) for value in values])
    except MessageError as error:
        raise _located(error, "tools") from None


def _with_free_arguments(tool: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """A built-in function is declared by its name alone; its arguments are whatever its maker takes."""
    function: object = tool.get("function")
    if tool.get("type") != "builtin_function" or not isinstance(function, Mapping) or "parameters" in function:
        return tool
    free: dict[str, JSON] = {**cast(Mapping[str, JSON], function), "parameters": {"type": "object"}}
    return {**tool, "function": free}


def _located(error: MessageError, whole: str) -> RequestError:
    path = _PATH.match(str(error))
    return RequestError(str(error), field=path.group() if path else error.field or whole)
