"""The blocks that messages of a request are made of, and the messages.

Blocks hold fields that K2 has no use for: marks of the cache, citations, signatures. Those that a client echoes from an
earlier answer are many and grow, so a block's unknown fields are let pass; a block of an unknown type is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(strict=True)
BLOCKS_READ = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking")


class CacheControl(BaseModel):
    """The mark that the prompt is to be cached up to here. Prefixes are cached anyway; the mark changes the counts."""

    model_config = STRICT
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = Field(None, description="Has no effect.")


class TextBlock(BaseModel):
    """Text of a message or of the system prompt."""

    model_config = STRICT
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class ToolUseBlock(BaseModel):
    """A call that the assistant made."""

    model_config = STRICT
    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ThinkingBlock(BaseModel):
    """Echoed thoughts of another model; accepted and left out, since K2 does not think at length."""

    model_config = STRICT
    type: Literal["thinking"]
    thinking: str = ""


class RedactedThinkingBlock(BaseModel):
    """Echoed thoughts that their model's maker encrypted; accepted and left out."""

    model_config = STRICT
    type: Literal["redacted_thinking"]
    data: str = ""


def field_of(value: object, name: str) -> object:
    """A field of what may or may not be an object."""
    return cast(Mapping[str, object], value).get(name) if isinstance(value, Mapping) else None


def _alternative(value: object) -> str | None:
    return "a string" if isinstance(value, str) else "a list" if isinstance(value, list) else None


def _read_here(value: object) -> object:
    """Refuse what this model cannot see, in better words than a list of tags."""
    kind = field_of(value, "type")
    if isinstance(kind, str) and kind not in BLOCKS_READ:
        raise PydanticCustomError(
            "unsupported_block",
            "blocks of type {kind} cannot be read, since this model reads text only; expected one of {expected}",
            {"kind": repr(kind), "expected": ", ".join(BLOCKS_READ)},
        )
    return value


_ReadHere = BeforeValidator(_read_here)
# Names of alternatives that are no identifiers stay out of the paths in error messages.
_STRING_OR_LIST = Discriminator(
    _alternative,
    custom_error_type="content_type",
    custom_error_message="Input should be a valid string or a list of content blocks",
)
_Text = Annotated[str, Tag("a string")]
TextContent = Annotated[_Text | Annotated[list[Annotated[TextBlock, _ReadHere]], Tag("a list")], _STRING_OR_LIST]
"""A string, or blocks of text."""


class ToolResultBlock(BaseModel):
    """What a call came to."""

    model_config = STRICT
    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1)
    content: TextContent | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


_UserBlock = Annotated[Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")], _ReadHere]
_AssistantBlock = Annotated[
    Annotated[TextBlock | ToolUseBlock | ThinkingBlock | RedactedThinkingBlock, Field(discriminator="type")], _ReadHere
]


class UserMessage(BaseModel):
    """What the user says, and the results of calls."""

    model_config = STRICT
    role: Literal["user"]
    content: Annotated[_Text | Annotated[list[_UserBlock], Tag("a list")], _STRING_OR_LIST]


class AssistantMessage(BaseModel):
    """What the assistant said; the last message of a conversation is one that it continues."""

    model_config = STRICT
    role: Literal["assistant"]
    content: Annotated[_Text | Annotated[list[_AssistantBlock], Tag("a list")], _STRING_OR_LIST]


class SystemMessage(BaseModel):
    """Instructions in the course of a conversation; they keep their place."""

    model_config = STRICT
    role: Literal["system"]
    content: TextContent


def _role(value: object) -> str | None:
    role = field_of(value, "role")
    return f"of role {role}" if role in ("user", "assistant", "system") else None


MessageParam = Annotated[
    Annotated[UserMessage, Tag("of role user")]
    | Annotated[AssistantMessage, Tag("of role assistant")]
    | Annotated[SystemMessage, Tag("of role system")],
    Discriminator(
        _role,
        custom_error_type="message_role",
        custom_error_message="Input should be an object whose role is 'user', 'assistant' or 'system'",
    ),
]
"""A message of a request."""
Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
"""A block of a message, whoever's."""
