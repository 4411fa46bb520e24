"""Answers that pass through the repair: what is valid as it was, what is broken put right, whatever its pieces."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chogori.chat.completer import (
    ChatRequest,
    ContentDelta,
    Event,
    Finished,
    RepairKind,
    Sampling,
    Started,
    TextRequest,
    TokenLogprob,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
    complete,
)
from chogori.chat.messages import Message, ToolCall
from chogori.chat.program import ProgramCompleter
from chogori.serve.gateway.config import RepairConfig
from chogori.serve.gateway.repairing import RepairingCompleter
from tests.serve.gateway.repaired_answers import (
    AB,
    CB,
    CE,
    REQUEST,
    SB,
    SE,
    SKARDU,
    Asked,
    Server,
    answer,
    calls_of,
    repaired,
)

# ---- what is valid stays


WORDS = (*'ab <|[`"\n日🏔', "<|tool", "[EOS]", "<|im_end|>", f"`{CE}`")
CONTENTS = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
ARGUMENTS = st.dictionaries(
    st.sampled_from(["a", "city", CE]),
    st.recursive(
        st.one_of(st.integers(), st.text(max_size=5), st.sampled_from([CE, SB + CB, "\u2028", 1.5, 1e16, None, True])),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    ),
    max_size=3,
)
CHOICES = st.tuples(
    CONTENTS, st.lists(st.tuples(ARGUMENTS, st.sampled_from([None, 2]), st.booleans()), max_size=3), st.booleans()
)


@settings(max_examples=300)
@given(choices=st.lists(CHOICES, min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_nothing_valid_is_altered(choices: list[Any], seed: int) -> None:
    """However the answers are cut and mixed: the same choices, to the byte, and no repair."""
    random_ = random.Random(seed)
    streams: list[list[Event]] = []
    for choice, (content, calls, is_foreign) in enumerate(choices):
        events: list[Event] = [ContentDelta(choice=choice, text=piece) for piece in _cut(content, random_)]
        for index, (value, indent, is_ascii) in enumerate(calls):
            arguments = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
            call_id = f"call_{index}" if is_foreign else f"functions.time:{index}"
            events.append(ToolCallBegin(choice=choice, index=index, id=call_id, name="time"))
            events += [ToolCallDelta(choice=choice, index=index, arguments=piece) for piece in _cut(arguments, random_)]
        streams.append([*events, Finished(choice=choice, reason="tool_calls" if calls else "stop")])
    mixed: list[Event] = [Started(prompt_tokens=3)]
    while any(streams):
        mixed.append(random_.choice([events for events in streams if events]).pop(0))
    mixed.append(Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=1))
    request = replace(REQUEST, sampling=Sampling(num_choices=len(choices)))
    plain = asyncio.run(complete(Server(mixed), request))
    assert repaired(mixed, request=request)[0] == plain
    assert plain.repairs == ()


def _cut(text: str, random_: random.Random) -> list[str]:
    pieces: list[str] = []
    while text:
        size = random_.choice([1, 2, 5, len(text)])
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def test_content_leaves_at_once_and_calls_when_they_are_whole() -> None:
    """What has left after each event of the server."""

    async def run() -> list[list[Event]]:
        told: list[list[Event]] = [[]]

        async def slow(request: Asked) -> AsyncGenerator[Event]:
            events = answer("It ", "is <|to", "x", ("get_weather", SKARDU), ("time", "{}"))
            events.insert(-2, ContentDelta(text="done"))
            for event in events:
                yield event
                told.append([])

        server = Server()
        server.stream = slow
        async for event in RepairingCompleter(server, RepairConfig()).stream(REQUEST):
            told[-1].append(event)
        return told

    weather, clock = "functions.get_weather:0", "functions.time:1"
    assert asyncio.run(run()) == [
        [],  # Started waits for what it begins
        [Started(prompt_tokens=10), ContentDelta(text="It ")],
        [ContentDelta(text="is ")],
        [ContentDelta(text="<|tox")],
        [],
        [],
        [
            ToolCallBegin(index=0, id=weather, name="get_weather"),
            ToolCallDelta(index=0, arguments=SKARDU),
        ],
        [],
        [
            ToolCallBegin(index=1, id=clock, name="time"),
            ToolCallDelta(index=1, arguments="{}"),
            ContentDelta(text="done"),
        ],
        [Finished(reason="tool_calls")],
        [],
        [Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4)],
    ]  # fmt: skip


def test_an_answer_that_takes_long_begins_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no proxy gives up while a long call is being written."""
    monkeypatch.setattr("chogori.serve.gateway.repairing.HOLD_STARTED_S", 0.0)

    async def run() -> list[Event]:
        events = RepairingCompleter(Server(answer(("get_weather", SKARDU))), RepairConfig()).stream(REQUEST)
        return [event async for event in events]

    assert asyncio.run(run())[:2] == [
        Started(prompt_tokens=10),
        ToolCallBegin(index=0, id="functions.get_weather:0", name="get_weather"),
    ]


def test_what_comes_of_a_call_that_has_left_is_dropped() -> None:
    events = answer(("time", "{}"))
    events.insert(-2, ContentDelta(text="Done."))
    events.insert(-2, ToolCallDelta(index=0, arguments="{}"))
    completion, _ = repaired(events)
    assert calls_of(completion) == [("functions.time:0", "time", "{}")]
    assert completion.repairs == ("arguments",)


def logged(text: str) -> ContentDelta:
    return ContentDelta(text=text, logprobs=(TokenLogprob(token_id=None, text=text.encode(), logprob=-0.5),))


def test_log_probabilities_stay_with_their_content() -> None:
    plain = [*map(logged, ["It", " is", " <|", "tool", " <", "|x"]), logged("")]
    raw = [*map(logged, ["Yes", ".", "<|tool_calls", "_section_begin|>"]), ContentDelta(text=f"{CB}time:0{AB}{{}}{CE}")]
    for events, kept in ((plain, plain), (raw, raw[:2])):
        completion, _ = repaired(
            [Started(prompt_tokens=1), *events, Finished(reason="stop"), Usage(prompt_tokens=1, completion_tokens=1)]
        )
        choice = completion.choices[0]
        assert choice.message.content == "".join(delta.text for delta in kept)
        assert choice.logprobs == tuple(token for delta in kept for token in delta.logprobs)


def test_without_tools_a_marker_is_a_word() -> None:
    text = f"K2 writes {SB}{CB}functions.time:0{AB}{{}}{CE}{SE}."
    completion, _ = repaired(answer(text), request=replace(REQUEST, tools=()))
    assert completion.choices[0].message.content == text
    assert completion.repairs == ()


# ---- what only was misspelled


MISSPELLED: dict[str, tuple[list[Event], list[tuple[str, str, str]], tuple[RepairKind, ...]]] = {
    "prefix": (answer(("functions.time", "{}")), [("functions.time:0", "time", "{}")], ("name", "id")),
    "case": (answer(("c1", "Time", "{}")), [("c1", "time", "{}")], ("name",)),
    "number of another conversation": (
        answer(("functions.time:7", "time", "{}")), [("functions.time:0", "time", "{}")], ("id",),
    ),
    "the same id": (
        answer(("c", "time", "{}"), ("c", "time", "{}")), [("c", "time", "{}"), ("functions.time:1", "time", "{}")],
        ("id",),
    ),
    "a number as a string": (
        answer(("get_weather", '{"city": "K2", "days": "3"}')),
        [("functions.get_weather:0", "get_weather", '{"city": "K2", "days": 3}')], ("arguments",),
    ),
    "a version as a number": (
        answer(("get_weather", '{"city": 1.10}')), [("functions.get_weather:0", "get_weather", '{"city": "1.10"}')],
        ("arguments",),
    ),
    "null for nothing": (
        answer(("get_weather", '{"city": "K2", "days": null}')),
        [("functions.get_weather:0", "get_weather", '{"city": "K2"}')], ("arguments",),
    ),
    "in the content": (
        answer("Look: ", f"{SB}{CB}time:0{AB}{{}}{CE}{SE}"), [("functions.time:0", "time", "{}")],
        ("raw_markers", "id"),
    ),
    "finish reason": (answer(("time", "{}"), reason="stop"), [("functions.time:0", "time", "{}")], ("finish_reason",)),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSPELLED)
def test_what_was_misspelled_is_put_right_without_the_model(name: str) -> None:
    events, calls, kinds = MISSPELLED[name]
    completion, server = repaired(events)
    assert calls_of(completion) == calls
    assert completion.repairs == kinds
    assert completion.choices[0].finish_reason == "tool_calls"
    assert len(server.asked) == 1


@settings(max_examples=200)
@given(seed=st.integers(0, 10_000))
def test_markers_in_content_are_read_in_any_pieces(seed: int) -> None:
    random_ = random.Random(seed)
    text = f'I look. {SB}{CB}functions.get_weather:0{AB}{SKARDU}{CE}{CB}time{AB}{{"a": "{CE}"}}{CE}{SE} Well.'
    completion, _ = repaired(answer(*_cut(text, random_)))
    assert completion.choices[0].message.content == "I look.  Well."
    assert [call[1:] for call in calls_of(completion)] == [("get_weather", SKARDU), ("time", f'{{"a": "{CE}"}}')]


def test_ids_of_the_conversation_go_out_in_the_models_form() -> None:
    history = [
        Message(role="user", content="Weather?"),
        Message(role="assistant", tool_calls=(ToolCall(id="call_9f", name="time", arguments="{}"),)),
        Message(role="tool", content="noon", tool_call_id="call_9f"),
    ]
    completion, server = repaired(answer(("call_9f", "time", "{}")), request=replace(REQUEST, messages=history))
    (asked,) = server.asked
    assert isinstance(asked, ChatRequest)
    assert asked.messages[1].tool_calls[0].id == asked.messages[2].tool_call_id == "functions.time:0"
    assert calls_of(completion) == [("functions.time:1", "time", "{}")]  # the client knows another call by that id


def test_texts_are_passed_on() -> None:
    events = answer(f"{CB} is a word")
    assert repaired(events, request=TextRequest(prompt="x"))[0].choices[0].message.content == f"{CB} is a word"


def test_a_client_that_leaves_closes_what_is_within() -> None:
    closed: list[str] = []

    async def run(policy: Callable[[Asked], Any]) -> None:
        events = RepairingCompleter(ProgramCompleter(policy), RepairConfig()).stream(REQUEST)
        async for event in events:
            if isinstance(event, ContentDelta):
                break
        await events.aclose()

    async def endless(_: Asked) -> AsyncGenerator[Event]:
        try:
            yield Started(prompt_tokens=1)
            while True:
                yield ContentDelta(text="on ")
        finally:
            closed.append("yes")

    asyncio.run(run(endless))
    assert closed == ["yes"]


def test_configs_that_cannot_be_are_refused() -> None:
    wrong: Sequence[dict[str, Any]] = ({"max_rounds": -1}, {"max_tokens": 0})
    for fields in wrong:
        with pytest.raises(ValueError, match=f"repair.{next(iter(fields))} is"):
            RepairConfig(**fields)
