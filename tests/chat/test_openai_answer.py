"""Whatever liberties a server takes with its chunks, the events keep the protocol's order."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from chogori.chat.completer import (
    ChatRequest,
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
)
from chogori.chat.messages import Message, ToolCall
from chogori.chat.openai_answer import OpenAIAnswer
from chogori.errors import BackendError
from tests.chat.misbehaving_server import chunk, usage

Object = dict[str, object]
CITY = '{"city": "Skardu"}'


def request(num_choices: int = 1, stop: tuple[str, ...] = (), num_earlier_calls: int = 0) -> ChatRequest:
    calls = tuple(ToolCall(id=f"c{i}", name="f", arguments="{}") for i in range(num_earlier_calls))
    messages = [Message(role="user", content="hello"), Message(role="assistant", tool_calls=calls)]
    return ChatRequest(messages=messages, sampling=Sampling(num_choices=num_choices, stop=stop))


def read(chunks: Sequence[object], asked: ChatRequest | TextRequest | None = None) -> list[Event]:
    answer = OpenAIAnswer(asked or request(), count_tokens=len)
    return [event for value in chunks for event in answer.feed(value)] + answer.finish()


def call(
    *, index: int | None = None, id: str | None = None, name: str | None = None, arguments: object = None
) -> Object:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    fields: Object = {"function": function, "type": "function"}
    return fields | {key: value for key, value in (("index", index), ("id", id)) if value is not None}


def calls_of(events: Sequence[Event]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of each call; checks that calls come one after the other, each with its dense index."""
    calls: list[tuple[str, str, str]] = []
    for event in events:
        match event:
            case ToolCallBegin():
                assert event.index == len(calls)
                calls.append((event.id, event.name, ""))
            case ToolCallDelta():
                assert event.index == len(calls) - 1
                assert event.arguments
                call_id, name, arguments = calls[-1]
                calls[-1] = (call_id, name, arguments + event.arguments)
            case _:
                pass
    return calls


def read_calls(
    *deltas: Object, finish: str = "tool_calls", asked: ChatRequest | None = None
) -> list[tuple[str, str, str]]:
    chunks = [chunk({"role": "assistant", "content": None, "tool_calls": [delta]}) for delta in deltas]
    events = read([*chunks, chunk(finish=finish)], asked)
    assert events[-2] == Finished(reason="tool_calls")
    return calls_of(events)


B = call(index=1, id="call_b", name="put", arguments="{}")
WHOLE = [("call_a", "get", CITY), ("call_b", "put", "{}")]


@pytest.mark.parametrize(
    "deltas",
    [
        [call(index=0, id="call_a", name="get", arguments=""), call(index=0, arguments=CITY[:5]),
         call(index=0, arguments=CITY[5:]), call(index=1, id="call_b", name="put", arguments=""),
         call(index=1, arguments="{}")],
        [call(index=0, id="call_a", name="get", arguments=CITY), B],
        [call(id="call_a", name="get", arguments=CITY), call(id="call_b", name="put", arguments="{}")],
        [call(id="call_a", name="get"), call(arguments=CITY), call(id="call_b", name="put"), call(arguments="{}")],
        [call(id="call_a", name="get"), call(id="call_a", arguments=CITY),
         call(id="call_b", name="put", arguments="{}")],
        [call(index=0, id="call_a", name="g"), call(index=0, name="et"), call(index=0, arguments=CITY),
         call(index=1, id="call_b", name="p"), call(index=1, name="u"), call(index=1, name="t", arguments="{}")],
        [call(index=0, id="call_a", name="get"), call(index=0, id="call_a", name="get", arguments=CITY[:3]),
         call(index=0, id="call_a", name="get", arguments=CITY[3:]), B],
        [call(index=0, id="call_a", name="get", arguments=CITY[:5]), call(index=1, id="call_b", name="put"),
         call(index=0, arguments=CITY[5:]), call(index=1, arguments="{}")],
        [call(index=0, id="call_a", name="get", arguments=CITY[:5]), B,
         call(index=0, arguments=CITY[5:])],
        [call(index=3, id="call_a", name="get", arguments=CITY),
         call(index=7, id="call_b", name="put", arguments="{}")],
        [call(index=1, id="call_a", name="get", arguments={"city": "Skardu"}),
         call(index=2, id="call_b", name="put", arguments={})],
        [call(index=0, id="call_a", name="get", arguments=CITY), B,
         call(index=0, arguments="\n")],
    ],
    ids=["as OpenAI", "whole", "whole without index", "in pieces without index", "id repeated", "name in pieces",
         "name repeated", "mixed", "mixed, the second over first", "gaps", "arguments as objects", "late white space"],
)  # fmt: skip
def test_calls_are_told_one_after_the_other(deltas: list[Object]) -> None:
    assert read_calls(*deltas) == WHOLE


@pytest.mark.parametrize("finish", ["tool_calls", "stop", "function_call", "tool_use"])
def test_the_reason_is_that_calls_were_made(finish: str) -> None:
    assert read_calls(call(index=0, id="call_a", name="get", arguments=CITY), finish=finish) == WHOLE[:1]


def test_calls_without_ids_are_counted_over_the_conversation() -> None:
    deltas = [call(index=0, name="get", arguments=CITY), call(index=1, name="put", arguments="{}")]
    assert read_calls(*deltas, asked=request(num_earlier_calls=2)) == [
        ("functions.get:2", "get", CITY),
        ("functions.put:3", "put", "{}"),
    ]


def test_two_whole_calls_without_index_and_id_are_two() -> None:
    deltas = [call(name="get", arguments=CITY), call(name="get", arguments="{}")]
    assert [name for _, name, _ in read_calls(*deltas)] == ["get", "get"]


def test_calls_without_arguments() -> None:
    deltas = [call(index=0, id="a", name="now", arguments=""), call(index=1, id="b", name="here")]
    assert read_calls(*deltas) == [("a", "now", ""), ("b", "here", "")]


def test_arguments_are_told_as_they_come() -> None:
    answer = OpenAIAnswer(request(), count_tokens=len)
    answer.feed(chunk({"tool_calls": [call(index=0, id="a", name="f", arguments="")]}))
    for character in CITY:
        (event,) = [
            e
            for e in answer.feed(chunk({"tool_calls": [call(index=0, arguments=character)]}))
            if isinstance(e, ToolCallDelta)
        ]
        assert event.arguments == character


@given(data=st.data())
def test_any_mixture_of_calls_is_told_in_order(data: st.DataObject) -> None:
    wanted = [(f"id{i}", f"f{i}", f'{{"n": "{"x" * data.draw(st.integers(0, 6))}"}}') for i in range(3)]
    rests = [arguments for _, _, arguments in wanted]
    deltas = [call(index=0, id="id0", name="f0")]
    num_begun = 1
    while any(rests):
        index = data.draw(st.sampled_from([i for i in range(3) if rests[i] and i <= num_begun]))
        if index == num_begun:
            deltas.append(call(index=index, id=f"id{index}", name=f"f{index}"))
            num_begun += 1
        size = data.draw(st.integers(1, len(rests[index])))
        deltas.append(call(index=index, arguments=rests[index][:size]))
        rests[index] = rests[index][size:]
    assert read_calls(*deltas) == wanted


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ([call(index=0, id=":0", arguments="{}")], "call 0 of choice 0 without a name"),
        ([call(index=0, id="a", name="f", arguments="{}"), call(index=1, id="b", name="g", arguments="{}"),
          call(index=0, arguments="x")], "went on with call 0 of choice 0 after its end"),
        ([{"function": 3}], "int for a function"),
        ([call(index=0, id="a", name="f", arguments=["x"])], "list for arguments"),
    ],
)  # fmt: skip
def test_calls_that_cannot_be_are_refused(deltas: list[Object], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        read_calls(*deltas)


def test_reasoning_is_left_out_and_null_is_nothing() -> None:
    events = read([
        chunk({"role": "assistant", "content": None, "reasoning_content": "hmm"}),
        chunk({"content": ""}),
        chunk({"content": "yes", "tool_calls": None, "reasoning": "…"}),
        {"choices": [{"delta": None, "finish_reason": "stop"}], "usage": None},
        usage(7, 3, cached=2),
    ])  # fmt: skip
    assert events == [
        Started(prompt_tokens=5),
        ContentDelta(text="yes"),
        Finished(reason="stop"),
        Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2),
    ]


def test_choices_are_kept_apart() -> None:
    chunks = [
        chunk({"content": "a"}, choice=1), chunk({"content": "b"}, choice=0), chunk(finish="length", choice=1),
        chunk({"content": "c"}, choice=0), chunk(finish="stop", choice=0),
    ]  # fmt: skip
    assert read(chunks, request(num_choices=2))[1:-1] == [
        ContentDelta(choice=1, text="a"),
        ContentDelta(choice=0, text="b"),
        Finished(choice=1, reason="length"),
        ContentDelta(choice=0, text="c"),
        Finished(choice=0, reason="stop"),
    ]


@pytest.mark.parametrize(
    ("fields", "stop_sequence"),
    [
        ({"stop_reason": "END"}, "END"),
        ({"matched_stop": "END"}, "END"),
        ({"stop_reason": 163586}, None),
        ({"matched_stop": "other"}, None),
        ({}, None),
    ],
)
def test_the_stop_text_is_told_where_the_server_does(fields: Object, stop_sequence: str | None) -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"} | fields]}
    assert read([end], request(stop=("END",)))[1] == Finished(reason="stop", stop_sequence=stop_sequence)


def test_usage_is_found_wherever_it_stands() -> None:
    counts = {"prompt_tokens": 4, "completion_tokens": 2, "cached_tokens": 3}
    moonshot = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": counts}]}
    assert read([chunk({"content": "a"}), moonshot])[-1] == Usage(prompt_tokens=4, completion_tokens=2, cached_tokens=3)
    continuous = chunk({"content": "a"}, usage=counts)
    assert read([continuous, chunk(finish="stop")])[0] == Started(prompt_tokens=4, cached_tokens=3)


def test_tokens_are_counted_where_the_server_counts_none() -> None:
    chunks = [
        chunk({"content": "abc"}),
        chunk({"tool_calls": [call(id="i", name="f", arguments="{}")]}),
        chunk(finish="stop"),
    ]
    assert read(chunks)[-1] == Usage(prompt_tokens=5, completion_tokens=len("abcf{}"))


def test_halves_of_utf16_pairs_are_joined() -> None:
    high, low = "\ud83c", "\udfd4"
    chunks = [
        chunk({"content": f"a{high}"}), chunk({"content": f"{low}b"}), chunk({"content": low}),
        chunk({"tool_calls": [call(index=0, id="i", name="f", arguments=f'{{"a": "{high}')]}),
        chunk({"tool_calls": [call(index=0, arguments=f'{low}"}}')]}),
        chunk({"content": high}), chunk(finish="stop"),
    ]  # fmt: skip
    events = read(chunks)
    assert "".join(event.text for event in events if isinstance(event, ContentDelta)) == "a🏔b\ufffd\ufffd"
    assert calls_of(events) == [("i", "f", '{"a": "🏔"}')]


def test_a_refusal_is_what_was_said() -> None:
    assert read([chunk({"refusal": "I won't."}), chunk(finish="stop")])[1] == ContentDelta(text="I won't.")


def test_logprobs_go_with_their_text() -> None:
    value = {
        "content": [
            {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [{"token": "e", "logprob": -1}]}
        ]
    }
    start = {"choices": [{"index": 0, "delta": {"content": "é"}, "logprobs": value, "finish_reason": "stop"}]}
    token = TokenLogprob(token_id=None, text=b"\xc3\xa9", logprob=-0.5, top=((None, b"e", -1.0),))
    assert read([start])[1] == ContentDelta(text="é", logprobs=(token,))


def test_logprobs_of_text_completions() -> None:
    value = {"tokens": ["a", "b"], "token_logprobs": [None, -2.0], "top_logprobs": [None, {"b": -2.0, "c": -3.0}]}
    start = {"choices": [{"text": "ab", "logprobs": value, "finish_reason": "stop"}]}
    event = read([start], TextRequest(prompt="a", echo=True))[1]
    tops = ((None, b"b", -2.0), (None, b"c", -3.0))
    first = TokenLogprob(token_id=None, text=b"a", logprob=None)
    second = TokenLogprob(token_id=None, text=b"b", logprob=-2.0, top=tops)
    assert event == ContentDelta(text="ab", logprobs=(first, second))


@pytest.mark.parametrize("value", [3, {"content": [{"logprob": 1}]}, {"tokens": ["a"], "token_logprobs": []}])
def test_logprobs_that_cannot_be_read_are_refused(value: object) -> None:
    with pytest.raises(BackendError, match="logprobs cannot be read"):
        read([{"choices": [{"text": "a", "logprobs": value}]}])


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([chunk(finish="stop"), chunk({"content": "more"})], "went on with choice 0 after it had finished"),
        ([chunk({"content": "a"})], r"ended before the answer did \(choices \[0\]\)"),
        ([], "ended before the answer did"),
        ([chunk(finish="tired")], "finish_reason 'tired'; expected one of stop,"),
        ([chunk(choice=1)], "sent choice 1; asked for 1"),
        ([{"choices": {}}], "dict for choices"),
        ([{"usage": {"prompt_tokens": -1}}], "usage is"),
        ([None], "NoneType for a chunk"),
    ],
)
def test_what_is_no_answer_is_refused(chunks: list[object], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        read(chunks)


def test_the_chunks_of_these_tests_are_openais() -> None:
    delta = {"role": "assistant", "tool_calls": [call(index=0, id="a", name="f", arguments="{}")]}
    for value in (chunk(delta), chunk({"content": "a"}), chunk(finish="stop")):
        ChatCompletionChunk.model_validate(value, strict=True)
