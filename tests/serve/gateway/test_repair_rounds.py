"""Calls that only the model can put right: made again or continued, in rounds that are bounded."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from chogori.chat.completer import (
    ChatRequest,
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    NamedTool,
    Sampling,
    Started,
    TextRequest,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
    complete,
)
from chogori.chat.language_samples import SAMPLES
from chogori.chat.messages import Message, ToolCall, ToolSpec
from chogori.chat.template import render
from chogori.chat.tokenizer import Tokenizer
from chogori.errors import BackendError, ContextLengthError, MessageError, OverloadedError, RequestError
from chogori.serve.gateway.config import RepairConfig
from chogori.serve.gateway.repairing import RepairingCompleter
from tests.serve.gateway.repaired_answers import (
    AB,
    CE,
    REQUEST,
    SE,
    SKARDU,
    TIME,
    Server,
    answer,
    calls_of,
    repaired,
)

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
