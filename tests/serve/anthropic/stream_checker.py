"""A client of Anthropic's streams that forgives nothing: each fault that real clients fail on has its words here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

Event = dict[str, Any]
STOP_REASONS = {"end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"}
DELTA_OF_BLOCK = {"text": "text_delta", "tool_use": "input_json_delta"}


class StreamFault(AssertionError):
    """What is wrong with a stream."""


def events_of(body: str) -> list[Event]:
    """The events of a response's body. Their names stand outside the data too, and some clients read only these."""
    events: list[Event] = []
    for part in body.split("\n\n"):
        if part:
            name, _, data = part.partition("\n")
            event = json.loads(data.removeprefix("data: "))
            _expect(name == f"event: {event['type']}", f"{name!r} holds a {event['type']}")
            events.append(event)
    _expect(body.endswith("\n\n"), "the last event is cut")
    return events


def message_of(events: Iterable[Event]) -> Event:
    """The message that a stream adds up to. Raises StreamFault where a strict client would fail."""
    checker = _Checker()
    for event in events:
        checker.take(event)
    _expect(checker.state == "stopped", f"the stream ended when the message was {checker.state}")
    return checker.message


def _expect(holds: bool, fault: str) -> None:
    if not holds:
        raise StreamFault(fault)


class _Checker:
    def __init__(self) -> None:
        self.state = "not begun"
        self.message: Event = {}
        self.open: Event | None = None
        self.pieces: list[str] = []

    def take(self, event: Event) -> None:
        kind = event["type"]
        if kind == "ping":
            _expect(self.state != "stopped", "ping after message_stop")
            return
        allowed = {
            "not begun": ("message_start",),
            "begun": ("content_block_start", "content_block_delta", "content_block_stop", "message_delta"),
            "ending": ("message_stop",),
            "stopped": (),
        }[self.state]
        _expect(kind in allowed, f"{kind} in a message that is {self.state}")
        getattr(self, f"_{kind}")(event)

    def _message_start(self, event: Event) -> None:
        message = event["message"]
        usage = message["usage"]
        _expect(message["content"] == [], "message_start has content")
        _expect(message["stop_reason"] is None and message["stop_sequence"] is None, "message_start has a stop reason")
        _expect(message["role"] == "assistant" and message["type"] == "message", "message_start starts no message")
        _expect(message["id"].startswith("msg_"), "the message's id does not begin with msg_")
        _expect(usage["input_tokens"] > 0, "input_tokens is 0 in message_start")
        _expect(usage["cache_read_input_tokens"] >= 0, "cache_read_input_tokens is negative")
        _expect(usage["cache_creation_input_tokens"] >= 0, "cache_creation_input_tokens is negative")
        self.message = {**message, "content": []}
        self.state = "begun"

    def _content_block_start(self, event: Event) -> None:
        block = event["content_block"]
        _expect(self.open is None, "a block starts before the last one stopped")
        _expect(event["index"] == len(self.message["content"]), "the index of a block has a gap")
        _expect(block["type"] in DELTA_OF_BLOCK, f"a block of type {block['type']}")
        if block["type"] == "text":
            _expect(block["text"] == "", "a text block starts with text")
        else:
            _expect(block["input"] == {}, "a tool_use block starts with input")
            _expect(block["id"].startswith("toolu_") and block["id"][6:].isalnum(), f"a call's id is {block['id']}")
            used = [other["id"] for other in self.message["content"] if other["type"] == "tool_use"]
            _expect(block["id"] not in used, "two calls have one id")
        self.open = dict(block)
        self.pieces = []
        self.message["content"].append(self.open)

    def _content_block_delta(self, event: Event) -> None:
        _expect(self.open is not None, "a delta outside of any block")
        assert self.open is not None
        delta = event["delta"]
        _expect(event["index"] == len(self.message["content"]) - 1, "a delta of a block that is not open")
        _expect(delta["type"] == DELTA_OF_BLOCK[self.open["type"]], f"{delta['type']} on a {self.open['type']} block")
        piece = delta["text"] if delta["type"] == "text_delta" else delta["partial_json"]
        _expect(piece != "", "an empty delta")
        self.pieces.append(piece)

    def _content_block_stop(self, event: Event) -> None:
        _expect(self.open is not None, "a block stops that did not start")
        assert self.open is not None
        _expect(event["index"] == len(self.message["content"]) - 1, "the wrong block stops")
        text = "".join(self.pieces)
        if self.open["type"] == "text":
            _expect(text != "", "an empty text block")
            self.open["text"] = text
        else:
            self.open["partial_json"] = text
        self.open = None

    def _message_delta(self, event: Event) -> None:
        _expect(self.open is None, "message_delta in an open block")
        content = self.message["content"]
        delta, usage = event["delta"], event["usage"]
        _expect(delta["stop_reason"] in STOP_REASONS, f"stop_reason is {delta['stop_reason']}")
        is_sequence = delta["stop_reason"] == "stop_sequence"
        _expect(is_sequence == (delta["stop_sequence"] is not None), "stop_sequence and stop_reason disagree")
        calls = [block for block in content if block["type"] == "tool_use"]
        _expect(delta["stop_reason"] != "end_turn" or not calls, "end_turn after a call, which would never run")
        if len(content) > 1 or calls:
            texts = [block["text"] for block in content if block["type"] == "text"]
            _expect(all(text.strip() for text in texts), "a text block of white space beside calls")
        for first, second in pairwise(content):
            _expect(first["type"] == "tool_use" or second["type"] == "tool_use", "two text blocks in a row")
        for call in calls:
            call["input"] = self._input(call.pop("partial_json"), delta["stop_reason"], is_last=call is content[-1])
        _expect(usage["output_tokens"] >= 0, "output_tokens is negative")
        self.message |= delta
        self.message["usage"] = {**self.message["usage"], **usage}
        self.state = "ending"

    def _message_stop(self, event: Event) -> None:
        _expect(event == {"type": "message_stop"}, "message_stop says something")
        self.state = "stopped"

    @staticmethod
    def _input(text: str, stop_reason: str, *, is_last: bool) -> object:
        try:
            value = json.loads(text or "{}")
        except ValueError:
            _expect(stop_reason == "max_tokens" and is_last, f"the input of a call is {text!r}")
            return text
        _expect(isinstance(value, dict), "the input of a call is no object")
        return value
