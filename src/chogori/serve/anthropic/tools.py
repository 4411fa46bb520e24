"""The tools of a request, and how they are to be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from chogori.chat.completer import NamedTool
from chogori.chat.completer import ToolChoice as CompleterToolChoice
from chogori.chat.messages import ToolSpec
from chogori.errors import RequestError
from chogori.serve.anthropic.content_blocks import STRICT, CacheControl, field_of

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


def _of_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") != "object":
        raise PydanticCustomError(
            "schema_type", "type is {found}; expected 'object'", {"found": repr(schema.get("type"))}
        )
    return schema


InputSchema = Annotated[
    dict[str, Any],
    AfterValidator(_of_an_object),
    WithJsonSchema({"type": "object", "required": ["type"], "properties": {"type": {"const": "object"}}}),
]


class CustomTool(BaseModel):
    """A tool that the client runs."""

    model_config = STRICT
    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: InputSchema = Field(description="JSON schema of the call's input.")
    cache_control: CacheControl | None = None
    strict: bool | None = Field(None, description="The schema is always enforced.")
    input_examples: list[dict[str, Any]] | None = Field(None, description="Has no effect.")
    defer_loading: bool | None = Field(None, description="Has no effect: all tools are shown to the model.")

    def spec(self) -> ToolSpec:
        """The tool as the model reads it."""
        return ToolSpec(name=self.name, description=self.description or "", parameters=self.input_schema)


def _run_by_the_client(value: object) -> object:
    kind = field_of(value, "type")
    if isinstance(kind, str) and kind != "custom":
        raise PydanticCustomError(
            "unsupported_tool",
            "tools of type {kind} are built into Anthropic's models and servers; expected a custom tool, with a name "
            "and an input_schema",
            {"kind": repr(kind)},
        )
    return value


Tool = Annotated[CustomTool, BeforeValidator(_run_by_the_client)]


class ToolChoiceAuto(BaseModel):
    """The model decides whether it calls."""

    model_config = STRICT
    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class ToolChoiceAny(BaseModel):
    """The model calls some tool."""

    model_config = STRICT
    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoiceTool(BaseModel):
    """The model calls this tool."""

    model_config = STRICT
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class ToolChoiceNone(BaseModel):
    """The model calls nothing."""

    model_config = STRICT
    type: Literal["none"]


ToolChoice = Annotated[ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool | ToolChoiceNone, Field(discriminator="type")]


def read_tools(tools: Sequence[CustomTool]) -> list[ToolSpec]:
    """The tools that the model may call. Raises RequestError on two of one name."""
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in seen:
            raise RequestError(
                f"tools.{i}.name: an earlier tool is named {tool.name!r} too; tool names must be unique",
                field=f"tools.{i}.name",
            )
        seen.add(tool.name)
    return [tool.spec() for tool in tools]


def read_tool_choice(choice: ToolChoice | None, tools: Sequence[ToolSpec]) -> CompleterToolChoice:
    """What the choice asks of the Completer. Raises RequestError where it asks for a tool that there is not."""
    match choice:
        case None | ToolChoiceAuto():
            return "auto"
        case ToolChoiceNone():
            return "none"
        case ToolChoiceAny():
            if not tools:
                raise RequestError("tool_choice: type is 'any', but tools is empty", field="tool_choice")
            return "required"
        case ToolChoiceTool(name=name):
            names = [tool.name for tool in tools]
            if name not in names:
                declared = ", ".join(names) or "no tools"
                raise RequestError(
                    f"tool_choice.name: {name!r} is no tool; declared: {declared}", field="tool_choice.name"
                )
            return NamedTool(name=name)


def allows_parallel_calls(choice: ToolChoice | None) -> bool:
    """Whether one answer may hold several calls."""
    return isinstance(choice, ToolChoiceNone | None) or choice.disable_parallel_tool_use is not True
