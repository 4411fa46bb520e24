"""The body of `POST /v1/responses`, and the request it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool, Sampling, ToolChoice
from chogori.chat.messages import ToolSpec
from chogori.errors import RequestError
from chogori.serve.api_errors import ApiError
from chogori.serve.openai.chat_request import MAX_TOOLS
from chogori.serve.openai.parameters import IGNORED_HEADER, Tokens, Whole
from chogori.serve.responses.input_items import Input, read_input, type_of

LOGPROBS = "message.output_text.logprobs"
STORES_NOTHING = "this server keeps no responses"
WITHOUT_EFFECT = frozenset({
    "max_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "user",
})  # fmt: skip
"""Accepted and named in the `x-chogori-ignored` header: they change where or how fast a request runs, who is billed,
how long a model thinks, and how often tools run that a server would run itself. Prefixes are cached without being told.
"""
_CLOSED = ConfigDict(strict=True, extra="forbid")


def _is_function(value: object) -> object:
    kind = type_of(value)
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError(
            "unsupported_tool",
            "a tool of type {kind} cannot run here; expected function",
            {"kind": repr(kind)},
        )
    return value


class FunctionTool(BaseModel):
    """A function that the model may call and the client runs."""

    model_config = _CLOSED
    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments object.")
    strict: bool | None = Field(None, description="The schema is always enforced.")


class FunctionChoice(BaseModel):
    """A function by its name."""

    model_config = _CLOSED
    type: Literal["function"]
    name: str = Field(min_length=1)


class AllowedTools(BaseModel):
    """The only tools that may be called now."""

    model_config = _CLOSED
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1)


class PlainFormat(BaseModel):
    """Any text, or any JSON object."""

    model_config = _CLOSED
    type: Literal["text", "json_object"]


class SchemaFormat(BaseModel):
    """JSON that satisfies a schema."""

    model_config = _CLOSED
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")
    name: str = Field("answer", description="For people; has no effect.")
    description: str | None = None
    strict: bool | None = Field(None, description="The schema is always enforced.")


# Tags that are no identifiers are left out of the paths in error messages.
_CHOICE_TAGS = {"function": "a function", "allowed_tools": "allowed tools"}
_FORMAT_TAGS = {"text": "a plain format", "json_object": "a plain format", "json_schema": "a schema"}


def _tag_of_choice(value: object) -> str | None:
    return "a word" if isinstance(value, str) else _CHOICE_TAGS.get(str(type_of(value)))


def _tag_of_format(value: object) -> str | None:
    return _FORMAT_TAGS.get(str(type_of(value)))


Choice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("a word")]
    | Annotated[FunctionChoice, Tag("a function")]
    | Annotated[AllowedTools, Tag("allowed tools")],
    Discriminator(
        _tag_of_choice,
        custom_error_type="tool_choice",
        custom_error_message="Input should be auto, none, required, or an object of type function or allowed_tools",
    ),
]
TextFormat = Annotated[
    Annotated[PlainFormat, Tag("a plain format")] | Annotated[SchemaFormat, Tag("a schema")],
    Discriminator(
        _tag_of_format,
        custom_error_type="text_format",
        custom_error_message="Input should be an object of type text, json_object or json_schema",
    ),
]


class TextConfig(BaseModel):
    """What the answer's text is."""

    model_config = _CLOSED
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Has no effect.")


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    model_config = _CLOSED
    include_obfuscation: bool | None = Field(None, description="Has no effect: events are never padded.")


class ResponseRequest(BaseModel):
    """A conversation to answer, in the shape of OpenAI's Responses API."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, json_schema_extra={"additionalProperties": False}
    )

    model: str | None = Field(None, description="A served model or an alias; the first one when left out.")
    input: Input
    instructions: str | None = Field(None, description="The first system message.")
    tools: (
        Annotated[list[Annotated[FunctionTool, BeforeValidator(_is_function)]], Field(max_length=MAX_TOOLS)] | None
    ) = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = Field(
        None, description=f"Above 0, log-probabilities are reported, as with `{LOGPROBS}` in include."
    )
    include: (
        list[
            Literal[
                "code_interpreter_call.outputs",
                "computer_call_output.output.image_url",
                "file_search_call.results",
                "message.input_image.image_url",
                "message.output_text.logprobs",
                "reasoning.encrypted_content",
                "web_search_call.action.sources",
                "web_search_call.results",
            ]
        ]
        | None
    ) = Field(None, description="Log-probabilities; the rest belongs to items that no response here has.")
    text: TextConfig | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(None, description="Echoed.")
    store: bool | None = Field(None, description="Responses are never kept, whatever this is; the answer says so.")
    truncation: Literal["disabled", "auto"] | None = Field(None, description="Only disabled.")
    background: bool | None = Field(None, description="Only false.")
    previous_response_id: str | None = Field(None, description="Only null: responses are not kept.")
    conversation: str | dict[str, Any] | None = Field(None, description="Only null: conversations are not kept.")

    def ignored_headers(self) -> dict[str, str]:
        """The header that names the parameters without effect. Raises the error of unknown ones, in OpenAI's words."""
        extra: Mapping[str, object] = self.model_extra or {}
        ignored = [name for name, value in extra.items() if value is not None]
        for name in ignored:
            if name not in WITHOUT_EFFECT:
                raise ApiError(f"Unknown parameter: '{name}'.", status=400, field=name, code="unknown_parameter")
        if self.text is not None and self.text.verbosity is not None:
            ignored.append("text.verbosity")
        return {IGNORED_HEADER: ", ".join(sorted(ignored))} if ignored else {}

    def chat_request(self, *, model: str, request_id: str, default_temperature: float) -> ChatRequest:
        """What is asked of the Completer. Raises RequestError that names the parameter at fault."""
        self._refuse_what_is_not_here()
        tools = self._tools()
        choice: ToolChoice = "auto"
        match self.tool_choice:
            case FunctionChoice():
                choice = NamedTool(name=self.tool_choice.name)
            case AllowedTools():
                choice = self.tool_choice.mode
                tools = _allowed(self.tool_choice, tools)
            case None:
                pass
            case word:
                choice = word
        return ChatRequest(
            messages=read_input(self.input, instructions=self.instructions),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_format=self._response_format(),
            sampling=Sampling(
                max_tokens=self.max_output_tokens,
                temperature=default_temperature if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                logprobs=LOGPROBS in (self.include or ()) or bool(self.top_logprobs),
                top_logprobs=self.top_logprobs or 0,
            ),
            model=model,
            request_id=request_id,
        )

    def echo(self, asked: ChatRequest) -> dict[str, Any]:
        """The parameters as every response repeats them, with the values that hold where none were given."""
        extra = self.model_extra or {}
        text_format = self.text.format if self.text is not None else None
        tool_choice = self.tool_choice or "auto"
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": extra.get("max_tool_calls"),
            "metadata": self.metadata or {},
            "model": asked.model,
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "prompt_cache_key": extra.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": extra.get("safety_identifier"),
            "service_tier": "default",
            "store": False,
            "temperature": asked.sampling.temperature,
            "text": {
                "format": {"type": "text"} if text_format is None else text_format.model_dump(by_alias=True),
                "verbosity": "medium",
            },
            "tool_choice": tool_choice if isinstance(tool_choice, str) else tool_choice.model_dump(),
            "tools": [{**tool.model_dump(), "strict": True} for tool in self.tools or ()],
            "top_logprobs": asked.sampling.top_logprobs,
            "top_p": asked.sampling.top_p,
            "truncation": "disabled",
            "user": extra.get("user"),
        }

    def _refuse_what_is_not_here(self) -> None:
        if self.previous_response_id is not None:
            raise RequestError(
                f"previous_response_id is {self.previous_response_id!r}; {STORES_NOTHING}, "
                "expected the earlier items in input",
                field="previous_response_id",
            )
        if self.conversation is not None:
            raise RequestError(
                f"conversation is set; {STORES_NOTHING}, expected the earlier items in input", field="conversation"
            )
        if self.background:
            raise RequestError(f"background is true; {STORES_NOTHING}, expected false", field="background")
        if self.truncation == "auto":
            raise RequestError(
                'truncation is "auto"; items are never left out here, expected "disabled"', field="truncation"
            )
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options is set, but stream is not true", field="stream_options")

    def _tools(self) -> list[ToolSpec]:
        tools: dict[str, ToolSpec] = {}
        for i, tool in enumerate(self.tools or ()):
            if tool.name in tools:
                name = f"tools[{i}].name"
                raise RequestError(f"{name} is {tool.name!r}, which an earlier tool has too", field=name)
            schema = {"parameters": tool.parameters} if tool.parameters is not None else {}
            tools[tool.name] = ToolSpec(name=tool.name, description=tool.description or "", **schema)
        return list(tools.values())

    def _response_format(self) -> JsonFormat | None:
        match self.text.format if self.text is not None else None:
            case SchemaFormat() as text_format:
                return JsonFormat(schema=text_format.schema_)
            case PlainFormat(type="json_object"):
                return JsonFormat()
            case _:
                return None


def _allowed(choice: AllowedTools, tools: list[ToolSpec]) -> list[ToolSpec]:
    allowed = {tool.name for tool in choice.tools}
    unknown = sorted(allowed - {tool.name for tool in tools})
    if unknown:
        declared = ", ".join(tool.name for tool in tools) or "no tools"
        raise RequestError(f"tool_choice allows {unknown[0]!r}; declared are {declared}", field="tool_choice.tools")
    return [tool for tool in tools if tool.name in allowed]
