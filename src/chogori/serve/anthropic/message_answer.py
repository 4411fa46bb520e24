"""Answers as Anthropic writes them: a stream of blocks, or the same blocks at once.

A stream is message_start, then for each block content_block_start, its deltas and content_block_stop, then
message_delta and message_stop. Clients fail on anything else: text in a block of a call, a block without content, a
second start.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic_core import from_json

from chogori.chat.completer import (
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Repaired,
    RepairKind,
    Started,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.errors import BackendError
from chogori.serve.anthropic.errors import anthropic_error_of, error_body
from chogori.serve.repairs import repairs_comment

Object = dict[str, Any]
_STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def new_tool_use_id() -> str:
    """An id for a call, unlike any other.

    K2's own, `functions.NAME:IDX`, has characters that Anthropic's ids may not have. What is given out here needs no
    memory: when it comes back, the call's place in the conversation says which one it is.
    """
    return f"toolu_{secrets.token_hex(12)}"


@dataclass(kw_only=True)
class MessageAnswer:
    """Writes one answer."""

    model: str
    request_id: str
    marked_tokens: int = 0
    """Tokens of the prompt up to the last mark of the cache."""
    make_tool_use_id: Callable[[], str] = new_tool_use_id
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")

    def __post_init__(self) -> None:
        self._num_blocks = 0
        self._open: Literal["text", "tool_use"] | None = None
        self._arguments: list[str] = []
        self._held_space: list[str] = []
        self._has_calls = False
        self._finished: Finished | None = None
        self._is_whole = False
        self.repairs: list[RepairKind] = []
        """What was put right on the way so far."""

    async def frames(self, events: AsyncIterator[Event]) -> AsyncGenerator[bytes]:
        """The answer as server-sent events; an error on the way is the last of them."""
        try:
            async for event in events:
                for wire_event in self.wire_events(event):
                    if wire_event["type"] == "message_stop" and (comment := repairs_comment(self.repairs)):
                        yield comment
                    yield _frame(wire_event)
            self._require_whole()
        except Exception as error:
            yield _frame(error_body(anthropic_error_of(error), self.request_id))

    async def whole(self, events: AsyncIterator[Event]) -> Object:
        """The answer as one message: what its stream adds up to."""
        message: Object = {}
        pieces: list[str] = []
        async for event in events:
            for wire_event in self.wire_events(event):
                match wire_event["type"]:
                    case "message_start":
                        message = wire_event["message"]
                    case "content_block_start":
                        message["content"].append(wire_event["content_block"])
                        pieces = []
                    case "content_block_delta":
                        delta = wire_event["delta"]
                        pieces.append(delta["text"] if delta["type"] == "text_delta" else delta["partial_json"])
                    case "content_block_stop":
                        block = message["content"][-1]
                        if block["type"] == "text":
                            block["text"] = "".join(pieces)
                        else:
                            block["input"] = _input("".join(pieces), may_be_cut=True)
                    case "message_delta":
                        message |= wire_event["delta"]
                        message["usage"] = wire_event["usage"]
                    case _:
                        pass
        self._require_whole()
        return message

    def wire_events(self, event: Event) -> Iterator[Object]:
        """What an event of the Completer becomes.

        Raises BackendError where a call's input is no JSON object, or the events are in no possible order.
        """
        match event:
            case Started():
                yield self._message_start(event)
                yield {"type": "ping"}
            case ContentDelta():
                yield from self._text(event.text)
            case ToolCallBegin():
                self._held_space.clear()
                self._has_calls = True
                block: Object = {"type": "tool_use", "id": self.make_tool_use_id(), "name": event.name, "input": {}}
                yield from self._start_block("tool_use", block)
            case ToolCallDelta():
                if self._open != "tool_use":
                    raise BackendError("the model's answer goes on with a tool call that has ended")
                if event.arguments:
                    self._arguments.append(event.arguments)
                    yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})
            case Finished():
                if not self._num_blocks:
                    yield from self._write_held_space()
                yield from self._stop_block(may_be_cut=event.reason == "length")
                self._finished = event
            case Usage():
                yield self._message_delta(event)
                self._is_whole = True
                yield {"type": "message_stop"}
            case Repaired():
                self.repairs.append(event.kind)

    def _text(self, text: str) -> Iterator[Object]:
        """Text, in an open block or a new one.

        Space before a block's first word is held until that word comes: models write line breaks around their calls,
        and Anthropic refuses blocks of nothing else when they are sent back. It is an answer only by itself.
        """
        if self._open == "text":
            if text:
                yield self._delta({"type": "text_delta", "text": text})
            return
        self._held_space.append(text)
        if text.strip():
            yield from self._write_held_space()

    def _write_held_space(self) -> Iterator[Object]:
        text = "".join(self._held_space)
        self._held_space.clear()
        if text:
            yield from self._start_block("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": text})

    def _start_block(self, kind: Literal["text", "tool_use"], block: Object) -> Iterator[Object]:
        yield from self._stop_block()
        self._open = kind
        self._num_blocks += 1
        yield {"type": "content_block_start", "index": self._num_blocks - 1, "content_block": block}

    def _delta(self, delta: Object) -> Object:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _stop_block(self, *, may_be_cut: bool = False) -> Iterator[Object]:
        if self._open == "tool_use":
            _input("".join(self._arguments), may_be_cut=may_be_cut)
            self._arguments.clear()
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._num_blocks - 1}

    def _message_start(self, started: Started) -> Object:
        message: Object = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(started, 0),
        }
        return {"type": "message_start", "message": message}

    def _message_delta(self, usage: Usage) -> Object:
        finished = self._finished
        if finished is None:
            raise BackendError("the model's answer has a usage, but no end")
        stop_sequence = finished.stop_sequence if finished.reason == "stop" else None
        reason = _STOP_REASONS[finished.reason]
        if stop_sequence is not None:
            reason = "stop_sequence"
        elif reason == "end_turn" and self._has_calls:
            reason = "tool_use"  # the only reason for which clients run tools
        return {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stop_sequence},
            "usage": self._usage(usage, usage.completion_tokens),
        }

    def _usage(self, read: Started | Usage, num_produced: int) -> Object:
        """Usage in Anthropic's terms, where the three kinds of input add up to the prompt."""
        # The last token stands outside always: the answer begins from it, so it is read anew.
        num_created = max(0, min(self.marked_tokens, read.prompt_tokens - 1) - read.cached_tokens)
        return {
            "input_tokens": read.prompt_tokens - read.cached_tokens - num_created,
            "cache_creation_input_tokens": num_created,
            "cache_read_input_tokens": read.cached_tokens,
            "output_tokens": num_produced,
        }

    def _require_whole(self) -> None:
        if not self._is_whole:
            raise BackendError("the model's answer ended half-way")


def _frame(wire_event: Object) -> bytes:
    data = json.dumps(wire_event, ensure_ascii=False, separators=(",", ":"))
    return f"event: {wire_event['type']}\ndata: {data}\n\n".encode()


def _input(arguments: str, *, may_be_cut: bool) -> Object:
    """The input of a call. What the token limit cut off is read as far as it goes, as Anthropic's SDK reads it."""
    try:
        value = cast(object, from_json(arguments or "{}", allow_inf_nan=False, allow_partial=may_be_cut))
    except ValueError as error:
        raise BackendError(f"the model called a tool with arguments that are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BackendError(f"the model called a tool with {type(value).__name__} as arguments; expected an object")
    return cast(Object, value)
