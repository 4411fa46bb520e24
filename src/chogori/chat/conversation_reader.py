"""Rendered conversations read back: the inverse of `template`, over token ids or over text.

Over ids it is exact. Over text, content that spells a marker cannot be told from the marker itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from chogori.chat.messages import Message, Role, ToolCall, ToolSpec, tools_from_openai
from chogori.chat.special_tokens import IM_END
from chogori.chat.template import (
    DEFAULT_SYSTEM,
    IM_ASSISTANT,
    IM_MIDDLE,
    IM_SYSTEM,
    IM_USER,
    RESULT_HEADING,
    TOOL_DECLARE,
)
from chogori.chat.tokenizer import Tokenizer
from chogori.chat.tool_call_events import Marker, name_of
from chogori.chat.tool_ids import canonical_tool_ids
from chogori.errors import MessageError

_SECTION_MARKERS = (
    Marker.SECTION_BEGIN,
    Marker.SECTION_END,
    Marker.CALL_BEGIN,
    Marker.ARGUMENT_BEGIN,
    Marker.CALL_END,
)
_MARKERS = (IM_SYSTEM, IM_USER, IM_ASSISTANT, IM_MIDDLE, IM_END, *(marker.value for marker in _SECTION_MARKERS))
_SPLIT_AT_MARKERS = re.compile("(" + "|".join(map(re.escape, _MARKERS)) + ")")
_RESULT = re.compile(re.escape(RESULT_HEADING) + r"(?P<id>[^\n]+)\n")
_ROLES: Mapping[str, Role] = {IM_SYSTEM: "system", IM_USER: "user", IM_ASSISTANT: "assistant"}
_MAX_SHOWN_CHARS = 40  # of what was found, in an error


class Conversation(NamedTuple):
    """What was rendered."""

    messages: list[Message]
    tools: list[ToolSpec]


def parse_rendered(ids: Sequence[int], tokenizer: Tokenizer) -> Conversation:
    """Read the token ids of a rendered conversation: the messages and tools that it was rendered from.

    Tool-call ids come back as `functions.NAME:IDX`. An inserted default system message and a generation prompt are left
    out; so is a name equal to its role, which the format does not write apart. A system message whose name is not
    `system` and which begins as a result of an earlier call does is read as that result.

    Older templates are read too: ids counted within each message, a newline after the default system message, spaced
    JSON, and arguments encoded twice (a JSON string that holds an object, which no tool's arguments are).

    Raises MessageError where the ids are no rendered conversation, saying where and what was expected there.
    """
    return _conversation(_Cursor(list(_pieces_of_ids(ids, tokenizer))))


def parse_rendered_text(text: str) -> Conversation:
    """`parse_rendered` for text: the same where no content spells a marker, else wrong or a MessageError."""
    return _conversation(_Cursor(list(_pieces_of_text(text))))


# ---- what is written: markers and the text between them ---------------------------------------------------------


class _Piece(NamedTuple):
    text: str
    is_marker: bool
    position: str
    """Where it begins, for errors."""


def _pieces_of_text(text: str) -> Iterator[_Piece]:
    position = 0
    for i, piece in enumerate(_SPLIT_AT_MARKERS.split(text)):
        if piece:
            yield _Piece(piece, i % 2 == 1, f"character {position}")
        position += len(piece)


def _pieces_of_ids(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[_Piece]:
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    begin = 0
    for i, token_id in enumerate(ids):
        name = names.get(token_id)
        if name is None:
            continue
        if begin < i:
            yield _Piece(tokenizer.decode(ids[begin:i]), False, f"token {begin}")
        yield _Piece(name, True, f"token {i}")
        begin = i + 1
    if begin < len(ids):
        yield _Piece(tokenizer.decode(ids[begin:]), False, f"token {begin}")


class _Cursor:
    """The pieces, read one after the other."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces
        self._next = 0

    @property
    def at_end(self) -> bool:
        return self._next == len(self._pieces)

    def is_at(self, marker: str) -> bool:
        return not self.at_end and self._pieces[self._next].is_marker and self._pieces[self._next].text == marker

    def take(self, *markers: str) -> str:
        """The next piece, which must be one of these markers."""
        if not any(self.is_at(marker) for marker in markers):
            raise self.error(" or ".join(markers))
        self._next += 1
        return self._pieces[self._next - 1].text

    def take_text(self) -> str:
        """The text up to the next marker; none is empty."""
        if self.at_end or self._pieces[self._next].is_marker:
            return ""
        self._next += 1
        return self._pieces[self._next - 1].text

    def skip_line_end(self) -> None:
        if not self.at_end and not self._pieces[self._next].is_marker and self._pieces[self._next].text == "\n":
            self._next += 1

    def error(self, expected: str) -> MessageError:
        found, where = "nothing more", "the end"
        if not self.at_end:
            piece = self._pieces[self._next]
            found, where = repr(piece.text[:_MAX_SHOWN_CHARS]), piece.position
        return MessageError(f"no rendered conversation: at {where} is {found}; expected {expected}")


# ---- blocks: messages as they are written -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    marker: str
    speaker: str
    content: str
    calls: tuple[tuple[str, str], ...] = ()
    """Ids and arguments."""
    is_open: bool = False
    """Whether the conversation ends before the block does."""


def _blocks(cursor: _Cursor) -> Iterator[_Block]:
    while not cursor.at_end:
        marker = cursor.take(IM_SYSTEM, IM_USER, IM_ASSISTANT)
        speaker = cursor.take_text()
        if not speaker:
            raise cursor.error(f"who speaks, after {marker}")
        cursor.take(IM_MIDDLE)
        content = cursor.take_text()
        calls: list[tuple[str, str]] = []
        if marker == IM_ASSISTANT and cursor.is_at(Marker.SECTION_BEGIN.value):
            calls += _section(cursor)
        is_open = marker == IM_ASSISTANT and cursor.at_end
        if not is_open:
            cursor.take(IM_END)
            cursor.skip_line_end()
        yield _Block(marker=marker, speaker=speaker, content=content, calls=tuple(calls), is_open=is_open)


def _section(cursor: _Cursor) -> Iterator[tuple[str, str]]:
    cursor.take(Marker.SECTION_BEGIN.value)
    while not cursor.is_at(Marker.SECTION_END.value):
        cursor.take(Marker.CALL_BEGIN.value)
        call_id = cursor.take_text()
        cursor.take(Marker.ARGUMENT_BEGIN.value)
        arguments = cursor.take_text()
        cursor.take(Marker.CALL_END.value)
        yield call_id, arguments
    cursor.take(Marker.SECTION_END.value)


# ---- messages ---------------------------------------------------------------------------------------------------


def _conversation(cursor: _Cursor) -> Conversation:
    blocks = list(_blocks(cursor))
    tools: list[ToolSpec] = []
    if blocks and (blocks[0].marker, blocks[0].speaker) == (IM_SYSTEM, TOOL_DECLARE):
        tools = _tools(blocks.pop(0).content)
    if blocks and blocks[-1] == _Block(marker=IM_ASSISTANT, speaker="assistant", content="", is_open=True):
        blocks.pop()  # the generation prompt
    tool_names = {tool.name for tool in tools}
    called_ids: set[str] = set()
    messages: list[Message] = []
    for block in blocks:
        messages.append(_message(block, tool_names, called_ids))
        called_ids.update(call_id for call_id, _ in block.calls)
    if _is_default_inserted(messages):
        messages.pop(0)
    return Conversation(canonical_tool_ids(messages).messages, tools)


def _tools(text: str) -> list[ToolSpec]:
    try:
        declarations: object = json.loads(text)
    except ValueError as error:
        raise MessageError(f"the {TOOL_DECLARE} block is not JSON: {error}", field="tools") from error
    if not isinstance(declarations, list):
        raise MessageError(f"the {TOOL_DECLARE} block is {text[:_MAX_SHOWN_CHARS]!r}; expected a list", field="tools")
    return tools_from_openai(cast(list[object], declarations))


def _message(block: _Block, tool_names: set[str], called_ids: set[str]) -> Message:
    role, content, tool_call_id = _ROLES[block.marker], block.content, None
    result = _RESULT.match(content) if role == "system" and block.speaker != "system" else None
    if result is not None and (block.speaker == "tool" or result["id"] in called_ids):
        role, content, tool_call_id = "tool", content[result.end() :], result["id"]
    return Message(
        role=role,
        content=content,
        name=None if block.speaker == role else block.speaker,
        tool_calls=tuple(
            ToolCall(id=call_id, name=_name(call_id, tool_names), arguments=_encoded_once(arguments))
            for call_id, arguments in block.calls
        ),
        tool_call_id=tool_call_id,
        partial=block.is_open,
    )


def _name(call_id: str, tool_names: set[str]) -> str:
    """The tool that an id names. Templates that write ids verbatim lose it where a client's ids do not hold it."""
    named = name_of(call_id)
    is_certain = named.name and (named.index is not None or call_id.startswith("functions."))
    if not is_certain and named.name not in tool_names:
        raise MessageError(
            f"the call {call_id!r} does not say which tool it calls; expected functions.NAME:IDX or one of "
            f"{', '.join(sorted(tool_names)) or 'the declared tools, of which there are none'}"
        )
    return named.name


def _encoded_once(arguments: str) -> str:
    """The arguments; those of the oldest template without their second encoding."""
    if not arguments.startswith('"'):
        return arguments
    try:
        inner: object = json.loads(arguments)
        is_object = isinstance(inner, str) and isinstance(json.loads(inner), dict)
    except ValueError:
        return arguments
    return cast(str, inner) if is_object else arguments


def _is_default_inserted(messages: Sequence[Message]) -> bool:
    """Whether leaving out the first message renders the same: it would be inserted again."""
    return (
        len(messages) > 1
        and messages[0] == Message(role="system", content=DEFAULT_SYSTEM)
        and messages[1].role != "system"
    )
