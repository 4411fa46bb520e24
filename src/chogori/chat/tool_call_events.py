"""What a parser of K2's output reports: text and tool calls, piece by piece, and calls that broke."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from chogori.chat import special_tokens


class Marker(Enum):
    """A special token that means something in an answer."""

    SECTION_BEGIN = "<|tool_calls_section_begin|>"
    SECTION_END = "<|tool_calls_section_end|>"
    CALL_BEGIN = "<|tool_call_begin|>"
    ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
    CALL_END = "<|tool_call_end|>"
    IM_END = special_tokens.IM_END
    EOS = special_tokens.EOS


@dataclass(frozen=True, slots=True)
class CallName:
    """What the id of a call says."""

    name: str
    """Name of the function; empty where the id names none."""
    index: int | None
    """Position among the calls of the conversation, where the id has one."""


# At most nine digits: a longer run is no position.
_INDEX = re.compile(r"(?P<name>.*):(?P<index>[0-9]{0,9})", re.DOTALL)
# Quotes, brackets and white space belong to arguments or prose; the wire format has them in no name.
NAME_PATTERN = r"""[^\s"'`{}()\[\]<>,;|\\]+"""
_NAME = re.compile(NAME_PATTERN)


def name_of(raw_id: str) -> CallName:
    """Read a call's id: `functions.NAME:IDX`, or without the prefix or the index. White space around it is nothing."""
    rest, index = raw_id.strip(), None
    if numbered := _INDEX.fullmatch(rest):
        rest, index = numbered["name"], int(numbered["index"]) if numbered["index"] else None
    name = rest.removeprefix("functions.")
    return CallName(name if _NAME.fullmatch(name) else "", index)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """More of the content; whole characters, never a marker."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallBegin:
    """A call whose name is known."""

    index: int
    """Among the calls of this message, from 0, without gaps."""
    id: str
    """As on the wire, without white space around it."""
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallArguments:
    """More of the arguments of the call that began last, exactly as written."""

    index: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallEnd:
    """The call is complete: its end marker came. Whether its arguments are JSON is for others to check."""

    index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class IncompleteCall:
    """A call that broke off; no CallEnd comes for it."""

    index: int | None
    """Of the CallBegin that announced it; None where none did."""
    header: str
    """What stood between its begin marker and its arguments, as written."""
    name: str | None
    """Name of the function; None where the header ends within it or names nothing."""
    arguments: str
    """All of its arguments. Less than its CallArguments said, where a string in them turned out never to close, so
    that what had been read as part of it was not."""
    broken_in: Literal["header", "arguments"]
    broken_by: Marker | None
    """The marker that came instead of the right one; None where the text ended. CALL_END itself where it ended a
    header without arguments, a call without a name, or a string that was still open."""


ParsedEvent = Text | CallBegin | CallArguments | CallEnd | IncompleteCall
