"""Anthropic's system prompt and messages, read into the messages that the model sees.

A user's message of tool results and text becomes several: one for each result, one for the texts between. Thinking is
dropped, since K2 has none; system messages stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from chogori.chat.messages import Message, ToolCall
from chogori.chat.tool_ids import canonical_tool_ids
from chogori.errors import RequestError
from chogori.serve.anthropic.content_blocks import (
    AssistantMessage,
    MessageParam,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

BILLING_HEADER = "x-anthropic-billing-header"
"""Claude Code begins its system prompt with a line of this name, which differs from request to request: with it, no
prefix would ever be found in the cache."""


def read_conversation(
    system: str | Sequence[TextBlock] | None, messages: Sequence[MessageParam], *, is_beginning: bool = False
) -> list[Message]:
    """Read a request's `system` and `messages`; the ids of tool calls become K2's own, whatever the client's were.

    The last message of an assistant is to be continued, and every call has its result in the turn after it; neither
    holds for a mere beginning of a conversation. Raises RequestError that names the block, as `messages.0.content.1`.
    """
    reader = _Reader(is_beginning=is_beginning)
    if system:
        reader.read_system(system)
    for i, message in enumerate(messages):
        reader.read(message, f"messages.{i}", is_last=i == len(messages) - 1)
    if not is_beginning:
        reader.require_results(f"messages.{len(messages) - 1}")
    return canonical_tool_ids(reader.messages).messages


@dataclass
class _Reader:
    is_beginning: bool
    messages: list[Message] = field(default_factory=list[Message])
    _open_calls: dict[str, None] = field(default_factory=dict[str, None])
    """Ids of calls without a result, in their order."""
    _is_assistants_turn: bool = False
    """Messages of one role that follow each other are one turn, whatever a system message says between them."""

    def read(self, message: MessageParam, where: str, *, is_last: bool) -> None:
        match message:
            case UserMessage():
                self._is_assistants_turn = False
                self._read_user(message, f"{where}.content")
            case AssistantMessage():
                if not self._is_assistants_turn:
                    self.require_results(where)
                self._is_assistants_turn = True
                self._read_assistant(message, f"{where}.content", is_last=is_last)
            case SystemMessage():
                self.read_system(message.content)

    def read_system(self, content: str | Sequence[TextBlock]) -> None:
        self._append(Message(role="system", content=_joined(_without_billing_header(text) for text in _texts(content))))

    def _read_user(self, message: UserMessage, where: str) -> None:
        texts: list[str] = []
        num_before = len(self.messages)
        blocks = [TextBlock(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        for i, block in enumerate(blocks):
            match block:
                case TextBlock():
                    texts.append(block.text)
                case ToolResultBlock():
                    self._append(Message(role="user", content=_joined(texts)))
                    texts.clear()
                    self._append(self._result(block, f"{where}.{i}"))
        self._append(Message(role="user", content=_joined(texts)))
        if len(self.messages) == num_before and not self.is_beginning:
            _refuse(where, "user messages must have non-empty content")

    def _result(self, block: ToolResultBlock, where: str) -> Message:
        if block.tool_use_id not in self._open_calls:
            _refuse(
                where,
                f"unexpected `tool_use_id` found in `tool_result` blocks: {block.tool_use_id}. Each `tool_result` "
                "block must have a corresponding `tool_use` block in the previous message, which has no other result",
            )
        del self._open_calls[block.tool_use_id]
        content = _joined(_texts(block.content or ""))
        if block.is_error:
            content = f"Error: {content or 'the tool failed'}"  # K2's format has no other place for it
        return Message(role="tool", tool_call_id=block.tool_use_id, content=content)

    def _read_assistant(self, message: AssistantMessage, where: str, *, is_last: bool) -> None:
        # An answer's blocks are pieces of one text, whereas those of a user are paragraphs.
        text = ""
        calls: list[ToolCall] = []
        blocks = [TextBlock(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        for i, block in enumerate(blocks):
            match block:
                case TextBlock():
                    text += block.text
                case ToolUseBlock():
                    calls.append(self._call(block, f"{where}.{i}"))
                case _:
                    pass
        is_partial = is_last and not self.is_beginning and bool(text) and not calls
        self._append(Message(role="assistant", content=text, tool_calls=tuple(calls), partial=is_partial))

    def _call(self, block: ToolUseBlock, where: str) -> ToolCall:
        if block.id in self._open_calls:
            _refuse(where, f"`tool_use` ids must be unique; {block.id} was used before")
        self._open_calls[block.id] = None
        # Spaced as K2 itself writes its arguments, so that its own calls are found in the cache when they come back.
        return ToolCall(id=block.id, name=block.name, arguments=json.dumps(block.input, ensure_ascii=False))

    def require_results(self, where: str) -> None:
        """Refuse a turn after calls whose results are missing."""
        if self._open_calls:
            _refuse(
                where,
                "`tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(self._open_calls)}. Each `tool_use` block must have a corresponding `tool_result` block "
                "in the next message",
            )

    def _append(self, message: Message) -> None:
        """Add a message, unless it says nothing."""
        if message.content or message.tool_calls or message.role == "tool":
            self.messages.append(message)


def _texts(content: str | Sequence[TextBlock]) -> list[str]:
    return [content] if isinstance(content, str) else [block.text for block in content]


def _joined(texts: Iterable[str]) -> str:
    return "\n".join(text for text in texts if text)


def _without_billing_header(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(BILLING_HEADER) else text


def _refuse(where: str, problem: str) -> NoReturn:
    raise RequestError(f"{where}: {problem}", field=where)
