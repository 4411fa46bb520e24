"""Anthropic's events of any answer: sound by a strict checker, and the same answer whole and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.completer import (
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Started,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.errors import BackendError, OverloadedError
from chogori.serve.anthropic.message_answer import MessageAnswer
from tests.serve.anthropic.stream_checker import events_of, message_of

STARTED = Started(prompt_tokens=7, cached_tokens=3)
USAGE = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=3)


def answer(*, marked_tokens: int = 0) -> MessageAnswer:
    numbers = count()
    return MessageAnswer(
        model="kimi-test",
        request_id="req_1",
        marked_tokens=marked_tokens,
        make_tool_use_id=lambda: f"toolu_{next(numbers)}",
        id="msg_1",
    )


async def _stream(events: Sequence[Event], error: Exception | None = None) -> AsyncGenerator[Event]:
    for event in events:
        yield event
    if error is not None:
        raise error


def streamed(events: Sequence[Event], error: Exception | None = None, **options: int) -> list[dict[str, Any]]:
    async def collect() -> list[bytes]:
        return [frame async for frame in answer(**options).frames(_stream(events, error))]

    return events_of(b"".join(asyncio.run(collect())).decode())


def whole(events: Sequence[Event], **options: int) -> dict[str, Any]:
    return asyncio.run(answer(**options).whole(_stream(events)))


def text(*pieces: str) -> list[Event]:
    return [ContentDelta(text=piece) for piece in pieces]


def call(index: int, *pieces: str) -> list[Event]:
    begin = ToolCallBegin(index=index, id=f"functions.f:{index}", name="f")
    return [begin, *(ToolCallDelta(index=index, arguments=piece) for piece in pieces)]


def answered(*parts: list[Event], reason: FinishReason = "stop", stop_sequence: str | None = None) -> list[Event]:
    finished = Finished(reason=reason, stop_sequence=stop_sequence)
    return [STARTED, *(event for part in parts for event in part), finished, USAGE]


# ---- any answer ---------------------------------------------------------------------------------------------------

TEXTS = st.lists(st.sampled_from(["", " ", "\n", "Guten Tag", "🏔", " x ", "{"]), max_size=4)
INPUTS = st.dictionaries(
    st.text(max_size=5), st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)), max_size=3
)


@st.composite
def pieces_of(draw: st.DrawFn, whole_text: str) -> list[str]:
    """A text, cut anywhere; some pieces are empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(whole_text)), max_size=4)))
    return [whole_text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole_text)], strict=True)]


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[Event], list[str], list[dict[str, Any]]]:
    """The events of an answer, its texts before, between and after its calls, and the inputs of these."""
    events: list[Event] = []
    texts: list[str] = []
    inputs: list[dict[str, Any]] = []
    num_calls = draw(st.integers(0, 3))
    for index in range(num_calls + 1):
        pieces = draw(TEXTS)
        texts.append("".join(pieces))
        events += text(*pieces)
        if index < num_calls:
            inputs.append(draw(INPUTS))
            events += call(index, *draw(pieces_of(json.dumps(inputs[-1], ensure_ascii=False))))
    reason: FinishReason = "tool_calls" if inputs else draw(st.sampled_from(["stop", "length", "content_filter"]))
    return answered(events, reason=reason), texts, inputs


@given(answers())
def test_every_stream_is_sound_and_says_what_the_model_said(
    case: tuple[list[Event], list[str], list[dict[str, Any]]],
) -> None:
    events, texts, inputs = case
    message = message_of(streamed(events))
    assert [block["input"] for block in message["content"] if block["type"] == "tool_use"] == inputs
    # Where there are calls, white space alone is no text. Elsewhere, every character comes through.
    said = [said for said in texts if said.strip()] if inputs else [said for said in texts if said]
    assert [block["text"] for block in message["content"] if block["type"] == "text"] == said
    assert whole(events) == message


# ---- single answers -----------------------------------------------------------------------------------------------


def test_the_events_of_text_a_call_and_text_in_their_order() -> None:
    events = streamed(answered(text("a"), call(0, '{"x"', ": 1}"), text("\n", "b"), reason="tool_calls"))
    usage = {"input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3}
    assert events == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "kimi-test",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {**usage, "output_tokens": 0},
            },
        },
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "toolu_0", "name": "f", "input": {}},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"x"'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "\nb"}},
        {"type": "content_block_stop", "index": 2},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {**usage, "output_tokens": 5},
        },
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize(
    ("reason", "stop_sequence", "parts", "expected"),
    [
        ("stop", None, text("a"), ("end_turn", None)),
        ("stop", "END", text("a"), ("stop_sequence", "END")),
        ("length", None, text("a"), ("max_tokens", None)),
        ("content_filter", None, text("a"), ("refusal", None)),
        ("tool_calls", None, call(0, "{}"), ("tool_use", None)),
        ("stop", None, call(0, "{}"), ("tool_use", None)),  # as some servers end an answer with calls
        ("stop", None, [], ("end_turn", None)),
    ],
)
def test_why_an_answer_ended(
    reason: FinishReason, stop_sequence: str | None, parts: list[Event], expected: tuple[str, str | None]
) -> None:
    message = whole(answered(parts, reason=reason, stop_sequence=stop_sequence))
    assert (message["stop_reason"], message["stop_sequence"]) == expected


def test_white_space_is_an_answer_only_by_itself() -> None:
    assert whole(answered(text("\n", " ")))["content"] == [{"type": "text", "text": "\n "}]
    calls = whole(answered(text("\n"), call(0, "{}"), text(" ", "\n"), call(1, "{}"), text("\n"), reason="tool_calls"))
    assert [block["type"] for block in calls["content"]] == ["tool_use", "tool_use"]


def test_a_call_without_arguments_has_an_empty_input() -> None:
    events = answered(call(0), reason="tool_calls")
    assert whole(events)["content"] == [{"type": "tool_use", "id": "toolu_0", "name": "f", "input": {}}]
    assert message_of(streamed(events)) == whole(events)


def test_a_call_that_the_token_limit_cut_is_read_as_far_as_it_goes() -> None:
    events = answered(call(0, '{"city": "Skardu", "day": "Mon'), reason="length")
    assert whole(events)["content"][0]["input"] == {"city": "Skardu"}
    message = message_of(streamed(events))
    assert (message["content"][0]["input"], message["stop_reason"]) == ('{"city": "Skardu", "day": "Mon', "max_tokens")


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (call(0, '{"x": '), "arguments that are not JSON"),
        (call(0, '{"x": NaN}'), "arguments that are not JSON"),
        ([*call(0, '{"x": '), *call(1, "{}")], "arguments that are not JSON"),
        (call(0, "[1]"), "list as arguments; expected an object"),
        (
            [*call(0, "{}"), *text("a"), ToolCallDelta(index=0, arguments="}")],
            "goes on with a tool call that has ended",
        ),
    ],
)
def test_what_no_client_could_read_is_an_error(parts: list[Event], problem: str) -> None:
    events = answered(parts, reason="tool_calls")
    with pytest.raises(BackendError, match=problem):
        whole(events)
    last = streamed(events)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert problem in last["error"]["message"]


def test_an_answer_without_an_end_is_an_error() -> None:
    for events in ([STARTED, *text("a")], [STARTED, *text("a"), USAGE], [STARTED, *text("a"), Finished(reason="stop")]):
        with pytest.raises(BackendError, match=r"ended half-way|has a usage, but no end"):
            whole(events)
        assert streamed(events)[-1]["type"] == "error"


def test_an_error_half_way_is_the_last_event() -> None:
    events = streamed([STARTED, *text("a")], OverloadedError("64 requests wait", retry_after_s=1))
    assert events[-1] == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "64 requests wait"},
        "request_id": "req_1",
    }
    assert events[-2]["delta"] == {"type": "text_delta", "text": "a"}


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        (0, (4, 0, 3)),  # nothing is marked: what is not in the cache is plain input
        (2, (4, 0, 3)),  # all that is marked was in the cache
        (5, (2, 2, 3)),
        (7, (1, 3, 3)),  # the last token is always read anew
        (99, (1, 3, 3)),  # an estimate may exceed the prompt
    ],
)
def test_the_three_kinds_of_input_add_up_to_the_prompt(marked: int, expected: tuple[int, int, int]) -> None:
    events = answered(text("a"))
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    start = streamed(events, marked_tokens=marked)[0]["message"]["usage"]
    assert tuple(start[name] for name in names) == expected
    assert tuple(whole(events, marked_tokens=marked)["usage"][name] for name in names) == expected
    assert sum(expected) == 7


def test_ids_differ_between_answers_and_calls() -> None:
    first = MessageAnswer(model="m", request_id="r")
    second = MessageAnswer(model="m", request_id="r")
    assert first.id != second.id
    assert len({first.make_tool_use_id() for _ in range(100)}) == 100
