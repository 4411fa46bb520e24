"""A program answers as a model would: same events, same limits, whatever the size of the pieces."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.completer import (
    ChatRequest,
    Completion,
    ContentDelta,
    Event,
    Finished,
    Sampling,
    Started,
    TextRequest,
    TokenLogprob,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
    complete,
)
from chogori.chat.messages import Message, ToolCall, ToolSpec
from chogori.chat.program import Policy, ProgramCompleter
from chogori.errors import BackendError, ConfigError, OverloadedError, RequestError

WEATHER = ToolCall(id="", name="get.weather", arguments='{"city": "Skardu"}')


def chat(*, num_earlier_calls: int = 0, tools: Sequence[ToolSpec] = (), **sampling: object) -> ChatRequest:
    earlier = tuple(ToolCall(id=f"c{i}", name="t", arguments="{}") for i in range(num_earlier_calls))
    messages = [
        Message(role="user", content="hello"),
        *([Message(role="assistant", tool_calls=earlier)] if earlier else []),
    ]
    return ChatRequest(messages=messages, tools=tools, sampling=Sampling(**sampling))  # pyright: ignore[reportArgumentType]


def program(policy: Policy, chunk_chars: int = 4) -> ProgramCompleter:
    return ProgramCompleter(policy, chunk_chars=chunk_chars, count_tokens=len)


def answered(policy: Policy, request: ChatRequest | TextRequest, chunk_chars: int = 4) -> Completion:
    return asyncio.run(complete(program(policy, chunk_chars), request))


def events_of(completer: ProgramCompleter, request: ChatRequest | TextRequest) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in completer.stream(request)]

    return asyncio.run(collect())


def test_events_come_in_the_order_of_the_protocol() -> None:
    message = Message(role="assistant", content="I look.", tool_calls=(WEATHER,))
    assert events_of(program(lambda _: message, chunk_chars=10), chat()) == [
        Started(prompt_tokens=5),
        ContentDelta(text="I look."),
        ToolCallBegin(index=0, id="functions.get.weather:0", name="get.weather"),
        ToolCallDelta(index=0, arguments='{"city": "'),
        ToolCallDelta(index=0, arguments='Skardu"}'),
        Finished(reason="tool_calls"),
        Usage(prompt_tokens=5, completion_tokens=7 + 11 + 18),
    ]


@given(content=st.text(max_size=30), num_calls=st.integers(0, 3), chunk_chars=st.integers(1, 40))
def test_the_size_of_the_pieces_changes_nothing(content: str, num_calls: int, chunk_chars: int) -> None:
    message = Message(role="assistant", content=content, tool_calls=(WEATHER,) * num_calls)
    assert answered(lambda _: message, chat(), chunk_chars) == answered(lambda _: message, chat(), 10_000)


def test_calls_alone_are_an_answer_and_ids_count_over_the_conversation() -> None:
    own = ToolCall(id="mine", name="t", arguments="{}")
    completion = answered(lambda _: [WEATHER, own, WEATHER], chat(num_earlier_calls=2))
    message = completion.choices[0].message
    assert [call.id for call in message.tool_calls] == ["functions.get.weather:2", "mine", "functions.get.weather:4"]
    assert completion.choices[0].finish_reason == "tool_calls"


def test_a_policy_may_be_a_coroutine() -> None:
    async def policy(request: ChatRequest | TextRequest) -> str:
        await asyncio.sleep(0)
        assert isinstance(request, ChatRequest)
        return request.messages[-1].content.upper()

    assert answered(policy, chat()).choices[0].message.content == "HELLO"


@pytest.mark.parametrize(
    ("stop", "said", "which"),
    [
        (("7",), "0123456", "7"),
        (("zz",), "0123456789", None),
        (("9", "34"), "012", "34"),
        (("34", "345"), "012", "345"),
        (("0",), "", "0"),
    ],
)
def test_a_stop_text_ends_the_answer_before_it(stop: tuple[str, ...], said: str, which: str | None) -> None:
    message = Message(role="assistant", content="0123456789", tool_calls=(WEATHER,))
    (choice,) = answered(lambda _: message, chat(stop=stop), chunk_chars=1).choices
    assert (choice.message.content, choice.stop_sequence) == (said, which)
    assert choice.finish_reason == ("tool_calls" if which is None else "stop")


@pytest.mark.parametrize(
    ("max_tokens", "said", "num_calls", "reason"),
    [(1, "0", 0, "length"), (9, "012345678", 0, "length"), (10, "0123456789", 0, "length"),
     (38, "0123456789", 0, "length"), (39, "0123456789", 1, "length"), (68, "0123456789", 2, "tool_calls")],
)  # fmt: skip
def test_the_limit_cuts_text_and_leaves_no_half_call(max_tokens: int, said: str, num_calls: int, reason: str) -> None:
    message = Message(role="assistant", content="0123456789", tool_calls=(WEATHER, WEATHER))
    completion = answered(lambda _: message, chat(max_tokens=max_tokens))
    (choice,) = completion.choices
    assert (choice.message.content, len(choice.message.tool_calls), choice.finish_reason) == (said, num_calls, reason)
    assert completion.usage.completion_tokens == len(said) + num_calls * 29


def test_a_limit_of_exactly_the_answer_is_no_cut() -> None:
    assert answered(lambda _: "0123456789", chat(max_tokens=10)).choices[0].finish_reason == "stop"


def test_several_choices_alternate_and_are_counted_together() -> None:
    answers = iter(["first answer", "other", "a third one"])
    events = events_of(program(lambda _: next(answers)), chat(num_choices=3))
    deltas = [event for event in events if isinstance(event, ContentDelta)]
    assert [delta.choice for delta in deltas] == [0, 1, 2, 0, 1, 2, 0, 2]
    texts = ["".join(delta.text for delta in deltas if delta.choice == choice) for choice in range(3)]
    assert texts == ["first answer", "other", "a third one"]
    assert sorted(event.choice for event in events if isinstance(event, Finished)) == [0, 1, 2]
    assert events[-1] == Usage(prompt_tokens=5, completion_tokens=28)


def test_the_prompt_counts_texts_calls_and_tools() -> None:
    tool = ToolSpec(name="t")
    bare = answered(lambda _: "", chat()).usage.prompt_tokens
    assert answered(lambda _: "", chat(num_earlier_calls=1)).usage.prompt_tokens == bare + len("t{}")
    assert answered(lambda _: "", chat(tools=[tool])).usage.prompt_tokens > bare + len(tool.name)
    assert answered(lambda _: "", TextRequest(prompt=[5, 6, 7])).usage.prompt_tokens == 3


def test_text_is_echoed_before_the_answer_and_not_counted() -> None:
    completion = answered(lambda _: "world", TextRequest(prompt="hello ", echo=True))
    assert completion.choices[0].message.content == "hello world"
    assert completion.usage == Usage(prompt_tokens=6, completion_tokens=5)
    with pytest.raises(RequestError, match="program:scripted has no vocabulary") as caught:
        answered(lambda _: "world", TextRequest(prompt=[1, 2], echo=True))
    assert caught.value.field == "echo"


def test_events_of_a_policy_are_passed_on_as_they_come() -> None:
    told: list[Event] = [
        Started(prompt_tokens=3, cached_tokens=2),
        ContentDelta(text="x", logprobs=(TokenLogprob(token_id=1, text=b"x", logprob=-0.5),)),
        Finished(reason="content_filter"),
        Usage(prompt_tokens=3, completion_tokens=1, cached_tokens=2),
    ]

    async def policy(request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        assert request.sampling.logprobs
        for event in told:
            yield event

    assert events_of(program(policy), chat(logprobs=True, num_choices=2, max_tokens=1)) == told


def test_closing_the_stream_closes_the_policys_own() -> None:
    closed: list[bool] = []

    async def policy(_: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        try:
            yield Started(prompt_tokens=1)
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def leave_early() -> None:
        stream = program(policy).stream(chat())
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave_early())
    assert closed == [True]


def test_a_delay_comes_before_each_delta() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    completer = ProgramCompleter(lambda _: "12345678", delay_s=0.25, sleep=sleep)
    assert len(events_of(completer, chat())) == 5
    assert slept == [0.25, 0.25]


def test_a_policy_that_fails_is_a_backend_that_fails() -> None:
    def broken(_: ChatRequest | TextRequest) -> str:
        raise KeyError("city")

    async def breaks_later(_: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        yield Started(prompt_tokens=1)
        raise KeyError("city")

    def busy(_: ChatRequest | TextRequest) -> str:
        raise OverloadedError("full", retry_after_s=3)

    for policy in (broken, breaks_later):
        with pytest.raises(BackendError, match="program:scripted failed: KeyError: 'city'"):
            events_of(program(policy), chat())
    with pytest.raises(OverloadedError, match="full"):
        events_of(program(busy), chat())


def test_what_a_program_cannot_do_is_refused() -> None:
    with pytest.raises(RequestError, match="a program, which has none") as caught:
        answered(lambda _: "x", chat(logprobs=True))
    assert caught.value.field == "logprobs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "kimi-k2"}, "name is 'kimi-k2'; expected it to begin with 'program:'"),
        ({"chunk_chars": 0}, "chunk_chars is 0; expected at least 1"),
        ({"delay_s": -1.0}, "delay_s is -1.0; expected at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProgramCompleter(lambda _: "", **changes)  # pyright: ignore[reportArgumentType]
