"""The checker rejects every fault that it is there for; otherwise what passes it would prove nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.serve.anthropic.stream_checker import Event, StreamFault, message_of

START: Event = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "kimi-test",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 0,
        },
    },
}


def block(index: int, kind: str, *pieces: str) -> list[Event]:
    start: Event = (
        {"type": "text", "text": ""}
        if kind == "text"
        else {"type": "tool_use", "id": f"toolu_{index}", "name": "f", "input": {}}
    )
    name = {"text": "text", "tool_use": "partial_json"}[kind]
    delta = {"text": "text_delta", "tool_use": "input_json_delta"}[kind]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": {"type": delta, name: piece}} for piece in pieces),
        {"type": "content_block_stop", "index": index},
    ]


def end(reason: str = "tool_use", sequence: str | None = None) -> list[Event]:
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    return [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}}, {"type": "message_stop"}]


def sound() -> list[Event]:
    return copy.deepcopy([START, *block(0, "text", "a", "b"), *block(1, "tool_use", '{"x"', ": 1}"), *end()])


def test_a_sound_stream_adds_up() -> None:
    message = message_of(sound())
    assert [piece.get("text", piece.get("input")) for piece in message["content"]] == ["ab", {"x": 1}]
    assert message["usage"]["output_tokens"] == 9


def changed(change: Callable[[list[Event]], Any]) -> list[Event]:
    events = sound()
    change(events)
    return events


def text_on_call(events: list[Event]) -> None:
    events[6]["delta"] = {"type": "text_delta", "text": "x"}


def zero_input(events: list[Event]) -> None:
    events[0]["message"]["usage"]["input_tokens"] = 0


FAULTS: dict[str, list[Event]] = {
    "input_tokens is 0": changed(zero_input),
    "text_delta on a tool_use block": changed(text_on_call),
    "an empty text block": [START, *block(0, "text"), *end("end_turn")],
    "an empty delta": [START, *block(0, "text", "a", ""), *end("end_turn")],
    "message_start in a message that is begun": changed(lambda events: events.insert(1, START)),
    "a delta outside of any block": changed(lambda events: events.pop(5)),
    "a block starts before the last one stopped": changed(lambda events: events.pop(4)),
    "a block stops that did not start": changed(lambda events: events.insert(5, events[4])),
    "the index of a block has a gap": [START, *block(1, "text", "a"), *end("end_turn")],
    "a text block of white space beside calls": [START, *block(0, "text", "\n"), *block(1, "tool_use", "{}"), *end()],
    "two text blocks in a row": [START, *block(0, "text", "a"), *block(1, "text", "b"), *end("end_turn")],
    "end_turn after a call": [START, *block(0, "tool_use", "{}"), *end("end_turn")],
    "stop_reason is stop": [START, *block(0, "text", "a"), *end("stop")],
    "stop_sequence and stop_reason disagree": [START, *end("end_turn", "\n")],
    "the input of a call is": [START, *block(0, "tool_use", '{"x"'), *end()],
    "the input of a call is no object": [START, *block(0, "tool_use", "[]"), *end()],
    "message_delta in an open block": changed(lambda events: events.pop(-3)),
    "message_stop in a message that is begun": changed(lambda events: events.pop(-2)),
    "ended when the message was ending": sound()[:-1],
    "ended when the message was not begun": [],
    "content_block_start in a message that is not begun": sound()[1:],
    "message_stop in a message that is stopped": [*sound(), {"type": "message_stop"}],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_stream_is_rejected(fault: str) -> None:
    with pytest.raises(StreamFault, match=fault):
        message_of(FAULTS[fault])
