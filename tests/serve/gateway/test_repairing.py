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
    Completion,
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    NamedTool,
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
from chogori.chat.language_samples import SAMPLES
from chogori.chat.messages import Message, ToolCall, ToolSpec
from chogori.chat.program import ProgramCompleter
from chogori.chat.template import render
from chogori.chat.tokenizer import Tokenizer
from chogori.chat.tool_call_events import Marker
from chogori.errors import BackendError, ContextLengthError, MessageError, OverloadedError, RequestError
from chogori.serve.gateway.config import RepairConfig
from chogori.serve.gateway.repairing import RepairingCompleter

Asked = ChatRequest | TextRequest
SB, SE = Marker.SECTION_BEGIN.value, Marker.SECTION_END.value
CB, AB, CE = Marker.CALL_BEGIN.value, Marker.ARGUMENT_BEGIN.value, Marker.CALL_END.value
WEATHER = ToolSpec(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIME = ToolSpec(name="time", parameters={"type": "object"})
REQUEST = ChatRequest(messages=[Message(role="user", content="Weather?")], tools=[WEATHER, TIME])
DEFAULT = RepairConfig()
SKARDU = '{"city": "Skardu"}'


def answer(
    *pieces: str | tuple[str, str] | tuple[str, str, str],
    reason: FinishReason | None = None,
    completion_tokens: int = 5,
) -> list[Event]:
    """Texts, and calls as (name, arguments) or (id, name, arguments), as the events of one choice."""
    events: list[Event] = [Started(prompt_tokens=10)]
    index = 0
    for piece in pieces:
        if isinstance(piece, str):
            events.append(ContentDelta(text=piece))
            continue
        call_id, name, arguments = piece if len(piece) == 3 else (f"functions.{piece[0]}:{index}", *piece)
        events.append(ToolCallBegin(index=index, id=call_id, name=name))
        events.append(ToolCallDelta(index=index, arguments=arguments))
        index += 1
    events.append(Finished(reason=reason or ("tool_calls" if index else "stop")))
    return [*events, Usage(prompt_tokens=10, completion_tokens=completion_tokens, cached_tokens=4)]


class Server:
    """Answers in turn, by events or by what is raised; `asked` is what it was asked."""

    def __init__(self, *answers: list[Event] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Asked] = []

    async def stream(self, request: Asked) -> AsyncGenerator[Event]:
        self.asked.append(request)
        events = self.answers.pop(0)
        if isinstance(events, Exception):
            raise events
        for event in events:
            yield event


def repaired(
    *answers: list[Event] | Exception, request: Asked = REQUEST, config: RepairConfig = DEFAULT, **how: Any
) -> tuple[Completion, Server]:  # fmt: skip
    server = Server(*answers)
    return asyncio.run(complete(RepairingCompleter(server, config, **how), request)), server


def calls_of(completion: Completion, choice: int = 0) -> list[tuple[str, str, str]]:
    return [(call.id, call.name, call.arguments) for call in completion.choices[choice].message.tool_calls]


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


# ---- what goes back to the model


def last_words(server: Server, number: int) -> str:
    asked = server.asked[number]
    assert isinstance(asked, ChatRequest)
    return asked.messages[-1].content


def test_a_broken_call_is_made_again_with_the_reason_and_usage_is_the_sum() -> None:
    completion, server = repaired(
        answer("I look. ", ("get_weather", '{"days": 3}'), ("time", "{}")),
        answer(("functions.get_weather:0", "get_weather", SKARDU), completion_tokens=7),
    )
    assert calls_of(completion) == [
        ("functions.get_weather:0", "get_weather", SKARDU), ("functions.time:1", "time", "{}")
    ]  # fmt: skip
    assert completion.repairs == ("asked_again",)
    assert completion.usage == Usage(prompt_tokens=20, completion_tokens=12, cached_tokens=8)
    asked = server.asked[1]
    assert isinstance(asked, ChatRequest)
    assert asked.tool_choice == NamedTool(name="get_weather")
    assert asked.messages[-2] == Message(role="assistant", content="I look. ")
    assert '"city" is a required property' in last_words(server, 1)
    assert '{"days": 3}' in last_words(server, 1)


def test_rounds_are_bounded_and_end_in_an_error_that_says_why() -> None:
    bad = answer(("get_weather", '{"days": 3}'))
    with pytest.raises(BackendError, match=r"'get_weather' in a way that could not be put right.*required property"):
        repaired(bad, bad, bad, answer(("get_weather", SKARDU)))
    with pytest.raises(BackendError, match="could not be put right"):
        repaired(bad, config=RepairConfig(max_rounds=0))
    with pytest.raises(BackendError, match="could not be put right"):  # the first round took all tokens
        repaired(bad, answer(("get_weather", "{}"), completion_tokens=50), config=RepairConfig(max_tokens=50))


def test_rounds_are_bounded_over_all_calls_of_an_answer() -> None:
    many = answer(*[("get_weather", "{}")] * 20)
    with pytest.raises(BackendError, match="could not be put right"):
        repaired(many, *[answer(("get_weather", SKARDU))] * 16)


def test_another_tool_or_text_is_no_answer_to_being_asked_again() -> None:
    bad = answer(("get_weather", "{}"))
    completion, server = repaired(bad, answer(("time", "{}")), answer(("get_weather", SKARDU)))
    assert calls_of(completion) == [("functions.get_weather:0", "get_weather", SKARDU)]
    assert "it was to call get_weather, and called time" in last_words(server, 2)
    with pytest.raises(BackendError, match="could not be put right"):
        repaired(bad, answer("No."), answer("Never."))


def test_an_undeclared_tool_is_named_and_any_declared_one_asked_for() -> None:
    completion, server = repaired(answer(("wetter", SKARDU)), answer(("get_weather", SKARDU)))
    assert calls_of(completion) == [("functions.get_weather:0", "get_weather", SKARDU)]
    asked = server.asked[1]
    assert isinstance(asked, ChatRequest)
    assert asked.tool_choice == "required"
    assert "there is no tool named 'wetter'" in last_words(server, 1)
    assert "get_weather, time" in last_words(server, 1)


def test_a_server_that_cannot_be_told_the_tool_gets_that_tool_alone() -> None:
    server = Server(
        answer(("get_weather", "{}")), RequestError("tool_choice: unsupported"), answer(("get_weather", SKARDU)),
        answer(("get_weather", "{}")), answer(("get_weather", SKARDU)),
    )  # fmt: skip
    completer = RepairingCompleter(server, RepairConfig())
    for _ in range(2):  # it is told only once
        assert calls_of(asyncio.run(complete(completer, REQUEST))) == [
            ("functions.get_weather:0", "get_weather", SKARDU)
        ]
    for number in (2, 4):
        asked = server.asked[number]
        assert isinstance(asked, ChatRequest)
        assert asked.tool_choice == "auto"
        assert [tool.name for tool in asked.tools] == ["get_weather"]


def test_what_a_round_raises_is_raised() -> None:
    for error in (BackendError("died", status=500), OverloadedError("busy", retry_after_s=1)):
        with pytest.raises(type(error), match=str(error)):
            repaired(answer(("get_weather", "{}")), error)


def test_what_we_ask_and_is_refused_is_no_fault_of_the_client() -> None:
    """A request that failed with 400 would send the client looking for its own mistake."""
    refusals = [RequestError("no such field")] * 2
    with pytest.raises(BackendError, match=r"could not be put right.*required property; asked again, no such field"):
        repaired(answer(("get_weather", "{}")), *refusals)


def test_where_the_context_has_no_room_for_all_tokens_the_limit_is_left_to_the_server() -> None:
    completion, server = repaired(
        answer(("get_weather", "{}")), ContextLengthError("too many"), answer(("get_weather", SKARDU))
    )
    assert calls_of(completion) == [("functions.get_weather:0", "get_weather", SKARDU)]
    assert [asked.sampling.max_tokens for asked in server.asked[1:]] == [8192, None]
    with pytest.raises(BackendError, match=r"could not be put right.*too many"):
        repaired(answer(("get_weather", "{}")), *[ContextLengthError("too many")] * 2)


def test_a_call_without_a_tool_to_call_is_an_error() -> None:
    for request in (replace(REQUEST, tools=()), replace(REQUEST, tool_choice="none")):
        with pytest.raises(BackendError, match="the request allows no call"):
            repaired(answer(("time", "{}")), request=request)


def test_choices_are_put_right_one_by_one() -> None:
    events: list[Event] = [
        Started(prompt_tokens=1),
        ToolCallBegin(choice=0, index=0, id="a", name="get_weather"),
        ToolCallBegin(choice=1, index=0, id="b", name="time"),
        ToolCallDelta(choice=0, index=0, arguments="{}"),
        ToolCallDelta(choice=1, index=0, arguments="{}"),
        Finished(choice=0, reason="tool_calls"),
        ContentDelta(choice=2, text="text"),
        Finished(choice=1, reason="tool_calls"),
        Finished(choice=2, reason="stop"),
        Usage(prompt_tokens=1, completion_tokens=1),
    ]
    request = replace(REQUEST, sampling=Sampling(num_choices=3, seed=5, logprobs=True, stop=("x",)))
    completion, server = repaired(events, answer(("get_weather", SKARDU)), request=request)
    assert [calls_of(completion, choice) for choice in range(3)] == [
        [("a", "get_weather", SKARDU)], [("b", "time", "{}")], []
    ]  # fmt: skip
    again = server.asked[1].sampling
    assert (again.num_choices, again.seed, again.logprobs, again.stop) == (1, 6, False, ())


def test_a_schema_that_cannot_be_followed_is_refused() -> None:
    for schema in ({"type": "what"}, {"$ref": "http://127.0.0.1:1/x"}, {"properties": {"a": {"pattern": "["}}}):
        tool = ToolSpec(name="odd", parameters=schema)
        with pytest.raises(MessageError, match=r"tools\[1\] \(odd\)") as raised:
            repaired(answer("Hi"), request=replace(REQUEST, tools=[TIME, tool]))
        assert raised.value.field == "tools"


# ---- what was cut off


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SAMPLES.values(), vocab_size=500)


@pytest.mark.parametrize("length", range(1, len(SKARDU)))
@pytest.mark.parametrize("reason", ["length", "tool_calls"])
def test_a_call_cut_off_goes_on_from_where_it_ended(tokenizer: Tokenizer, length: int, reason: FinishReason) -> None:
    completion, server = repaired(
        answer("I look. ", ("time", "{}"), ("get_weather", SKARDU[:length]), reason=reason),
        answer(SKARDU[length:], f"{CE}{SE} and more"),
        tokenizer=tokenizer,
    )
    assert calls_of(completion)[1] == ("functions.get_weather:1", "get_weather", SKARDU)
    assert completion.repairs == ("continued",)
    asked = server.asked[1]
    assert isinstance(asked, TextRequest)
    assert not isinstance(asked.prompt, str)
    # The whole conversation, rendered with the call complete, begins with what the model is given.
    calls = (
        ToolCall(id="", name="time", arguments="{}"), ToolCall(id="", name="get_weather", arguments=SKARDU[:length])
    )  # fmt: skip
    whole = render(
        [*REQUEST.messages, Message(role="assistant", content="I look. ", tool_calls=calls)],
        REQUEST.tools,
        tokenizer=tokenizer,
    )
    assert whole.ids[: len(asked.prompt)] == list(asked.prompt)
    assert tokenizer.decode(asked.prompt).endswith(f"functions.get_weather:1{AB}{SKARDU[:length]}")


def test_a_call_goes_on_in_partial_mode_where_the_server_has_it() -> None:
    completion, server = repaired(
        answer(("get_weather", SKARDU[:9]), reason="length"), answer(SKARDU[9:]), is_partial=True
    )
    assert calls_of(completion) == [("functions.get_weather:0", "get_weather", SKARDU)]
    asked = server.asked[1]
    assert isinstance(asked, ChatRequest)
    assert asked.messages[-1] == Message(role="assistant", content=SKARDU[:9], partial=True)
    assert asked.tool_choice == "none"


def test_where_a_call_cannot_go_on_it_is_made_again(tokenizer: Tokenizer) -> None:
    cut = answer(("get_weather", SKARDU[:9]), reason="length")
    again = answer(("get_weather", SKARDU))
    server = Server(cut, BackendError("no such path", status=404), again, cut, again)
    completer = RepairingCompleter(server, RepairConfig(), tokenizer=tokenizer)
    for _ in range(2):  # it is asked only once
        assert calls_of(asyncio.run(complete(completer, REQUEST))) == [
            ("functions.get_weather:0", "get_weather", SKARDU)
        ]
    assert [type(asked) for asked in server.asked] == [ChatRequest, TextRequest, ChatRequest, ChatRequest, ChatRequest]


def test_what_the_token_limit_cut_and_nothing_saves_is_left_out() -> None:
    cut = answer("I look.", ("time", "{}"), ("get_weather", SKARDU[:9]), reason="length")
    completion, _ = repaired(cut, answer("No."), answer("No."))
    assert calls_of(completion) == [("functions.time:0", "time", "{}")]
    assert completion.choices[0].finish_reason == "length"
    assert completion.repairs == ("left_out",)


def test_a_partial_message_is_continued_in_the_rounds_too(tokenizer: Tokenizer) -> None:
    request = replace(REQUEST, messages=[*REQUEST.messages, Message(role="assistant", content="I ", partial=True)])
    _, server = repaired(
        answer("look.", ("get_weather", SKARDU[:9])), answer("!"), answer(("get_weather", SKARDU)), request=request,
        tokenizer=tokenizer,
    )  # fmt: skip
    _, went_on, again = server.asked
    assert isinstance(went_on, TextRequest)
    assert isinstance(again, ChatRequest)
    assert not isinstance(went_on.prompt, str)
    assert "assistant<|im_middle|>I look.<|tool_calls_section_begin|>" in tokenizer.decode(went_on.prompt)
    assert again.messages[-2] == Message(role="assistant", content="I look.")


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
