"""The bodies of `POST /v1/messages` and `/v1/messages/count_tokens`, and the request they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from chogori.chat.completer import ChatRequest, JsonFormat, Sampling
from chogori.errors import RequestError
from chogori.serve.anthropic.content_blocks import STRICT, CacheControl, MessageParam, TextContent
from chogori.serve.anthropic.conversation import read_conversation
from chogori.serve.anthropic.errors import THREADS_UNSUPPORTED
from chogori.serve.anthropic.tools import Tool, ToolChoice, allows_parallel_calls, read_tool_choice, read_tools
from chogori.serve.api_errors import ApiError
from chogori.serve.openai.parameters import IGNORED_HEADER, Tokens, Whole

DEFAULT_TEMPERATURE = 1.0
"""Anthropic's, before the factor of the settings."""


class Thinking(BaseModel):
    """How long to think. K2 has no thoughts apart from its answer, so every kind is the same as disabled."""

    model_config = STRICT
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Whole] | None = None
    display: str | None = None


class OutputFormat(BaseModel):
    """A schema that the answer's text satisfies."""

    model_config = STRICT
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """What the answer is like."""

    model_config = ConfigDict(strict=True, extra="forbid")
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(None, description="Has no effect.")
    format: OutputFormat | None = None


class Prompt(BaseModel):
    """What both endpoints take: a conversation, and what may stand in the prompt besides.

    Documented betas that change where, how fast or at whose cost a request runs are accepted and named in the
    `x-chogori-ignored` header. Those that would have the server do something are refused.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    messages: list[MessageParam] = Field(min_length=1, max_length=100_000)
    system: TextContent | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    cache_control: CacheControl | None = Field(None, description="As on the last block.")
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="The older name of `output_config.format`.")

    thinking: Thinking | None = Field(None, description="Accepted; K2 does not think at length.")
    speed: Literal["standard", "fast"] | None = Field(None, description="Has no effect.")
    context_management: dict[str, Any] | None = Field(None, description="Has no effect: nothing is cut from a prompt.")
    user_profile_id: str | None = Field(None, description="Has no effect.")
    workspace_id: str | None = Field(None, description="Has no effect.")
    # Said to be null, since it is refused otherwise: by the code that clients know, which pydantic would not give.
    thread: Annotated[dict[str, Any] | None, WithJsonSchema({"type": "null"})] = None
    mcp_servers: list[dict[str, Any]] | None = Field(None, max_length=0, description="Only an empty list.")

    def ignored_parameters(self) -> Iterator[str]:
        """Names of the parameters given that have no effect."""
        for name in ("context_management", "user_profile_id", "workspace_id"):
            if getattr(self, name) is not None:
                yield name
        if self.speed == "fast":
            yield "speed"
        if self.thinking is not None and self.thinking.type != "disabled":
            yield "thinking"
        if self.output_config is not None and self.output_config.effort is not None:
            yield "output_config.effort"
        for name in ("input_examples", "defer_loading"):
            if any(getattr(tool, name) for tool in self.tools or ()):
                yield f"tools.{name}"

    def ignored_headers(self) -> dict[str, str]:
        """The header that names the parameters without effect."""
        names = sorted(self.ignored_parameters())
        return {IGNORED_HEADER: ", ".join(names)} if names else {}

    def chat_request(
        self, *, model: str, request_id: str | None = None, sampling: Sampling | None = None
    ) -> ChatRequest:
        """What is asked of the Completer. Raises RequestError that names the parameter at fault."""
        if self.thread is not None:
            raise ApiError(
                "thread: this server keeps no conversations; expected all messages in each request, without a thread",
                status=400,
                field="thread",
                code=THREADS_UNSUPPORTED,
            )
        tools = read_tools(self.tools or ())
        return ChatRequest(
            messages=read_conversation(self.system, self.messages),
            tools=tools,
            tool_choice=read_tool_choice(self.tool_choice, tools),
            parallel_tool_calls=allows_parallel_calls(self.tool_choice),
            response_format=self._response_format(),
            sampling=sampling or Sampling(),
            model=model,
            request_id=request_id,
        )

    def _response_format(self) -> JsonFormat | None:
        old, new = self.output_format, self.output_config.format if self.output_config else None
        if old is not None and new is not None and old != new:
            raise RequestError(
                "output_format: differs from output_config.format, which means the same; expected one of them",
                field="output_format",
            )
        chosen = new or old
        return None if chosen is None else JsonFormat(schema=chosen.schema_)


class CountTokensRequest(Prompt):
    """A conversation to count."""


class Metadata(BaseModel):
    """Who asks."""

    model_config = ConfigDict(strict=True, extra="forbid")
    user_id: str | None = None


class MessageRequest(Prompt):
    """A conversation to answer."""

    max_tokens: Tokens
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Multiplied by the server's factor, 0.6 unless set otherwise."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] | None = Field(None, description="0 for all tokens.")
    stream: bool | None = None

    metadata: Metadata | None = Field(None, description="Has no effect.")
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="Has no effect.")
    inference_geo: str | None = Field(None, description="Has no effect.")
    diagnostics: dict[str, Any] | None = Field(None, description="Has no effect.")

    def ignored_parameters(self) -> Iterator[str]:
        """Names of the parameters given that have no effect."""
        yield from super().ignored_parameters()
        for name in ("metadata", "service_tier", "inference_geo", "diagnostics"):
            if getattr(self, name) is not None:
                yield name

    def sampling(self, *, temperature_factor: float) -> Sampling:
        """How tokens are chosen."""
        temperature = DEFAULT_TEMPERATURE if self.temperature is None else self.temperature
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=temperature * temperature_factor,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or None,
            stop=tuple(self.stop_sequences or ()),
        )
