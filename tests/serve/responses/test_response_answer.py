"""Events against OpenAI's own types, against the SDK's reading of them, and against the response at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from chogori.chat.completer import (
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Started,
    TokenLogprob,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.errors import BackendError, OverloadedError
from chogori.serve.responses.response_answer import ResponseAnswer
from chogori.serve.responses.response_request import ResponseRequest

OFFICIAL_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=3)


def new_answer() -> ResponseAnswer:
    body = ResponseRequest(input="Hello", tools=[{"type": "function", "name": "f"}])  # pyright: ignore
    asked = body.chat_request(model="kimi-test", request_id="r", default_temperature=0.6)
    return ResponseAnswer(parameters=body.echo(asked), id="resp_1", created_at=1_700_000_000)


async def stream_of(events: Sequence[Event], error: Exception | None = None) -> AsyncGenerator[Event]:
    for event in events:
        yield event
    if error is not None:
        raise error


def written(events: Sequence[Event], error: Exception | None = None) -> list[dict[str, Any]]:
    """The events of a stream, each checked to be what OpenAI's own types say it is."""

    async def read() -> list[bytes]:
        return [frame async for frame in new_answer().frames(stream_of(events, error))]

    out: list[dict[str, Any]] = []
    for number, frame in enumerate(asyncio.run(read())):
        name, data, *rest = frame.decode().split("\n")
        assert rest == ["", ""]
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        OFFICIAL_EVENT.validate_python(event, strict=True)
        out.append(event)
    return out


def at_once(events: Sequence[Event]) -> dict[str, Any]:
    response = asyncio.run(new_answer().whole(stream_of(events)))
    Response.model_validate(response, strict=True)
    return response


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """A response but for the ids that are drawn anew each time, and the clock."""
    output = [{**item, "id": item["id"].partition("_")[0]} for item in response["output"]]
    return {**response, "output": output, "completed_at": None}


# ---- the official sequence ---------------------------------------------------------------------------------------


def test_text_is_written_in_the_official_sequence() -> None:
    events = written(
        [
            Started(prompt_tokens=7),
            ContentDelta(text="Guten "),
            ContentDelta(text="Tag 🏔"),
            Finished(reason="stop"),
            USAGE,
        ]
    )
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["usage"] is None
    assert events[2]["item"]["status"] == "in_progress"
    assert events[2]["item"]["content"] == []
    assert [event["delta"] for event in events[4:6]] == ["Guten ", "Tag 🏔"]
    assert events[6]["text"] == events[7]["part"]["text"] == "Guten Tag 🏔"
    assert {event["item_id"] for event in events[3:8]} == {events[2]["item"]["id"]}
    assert events[9]["response"]["output"] == [events[8]["item"]]
    assert events[9]["response"]["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }


def test_calls_follow_text_as_items_of_their_own() -> None:
    events = written(
        [
            Started(prompt_tokens=7),
            ContentDelta(text="A moment"),
            ToolCallBegin(index=0, id="functions.f:0", name="f"),
            ToolCallDelta(index=0, arguments='{"a":'),
            ToolCallDelta(index=0, arguments=" 1}"),
            ToolCallBegin(index=1, id="functions.f:1", name="f"),
            ToolCallDelta(index=1, arguments="{}"),
            Finished(reason="tool_calls"),
            USAGE,
        ]
    )
    calls = events[events.index(next(e for e in events if e["type"] == "response.output_item.done")) + 1 : -1]
    assert [(event["type"].removeprefix("response."), event["output_index"]) for event in calls] == [
        ("output_item.added", 1),
        ("function_call_arguments.delta", 1),
        ("function_call_arguments.delta", 1),
        ("function_call_arguments.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
    ]
    assert (calls[0]["item"]["name"], calls[0]["item"]["call_id"]) == ("f", "functions.f:0")
    assert (calls[0]["item"]["arguments"], calls[0]["item"]["status"]) == ("", "in_progress")
    assert calls[3]["arguments"] == calls[4]["item"]["arguments"] == '{"a": 1}'
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call", "function_call"]


def test_an_answer_without_anything_is_one_empty_message() -> None:
    nothing = [Started(prompt_tokens=7), Finished(reason="stop"), USAGE]
    (item,) = at_once(nothing)["output"]
    assert item["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
    assert written(nothing)[-1]["response"]["output"][0]["content"] == item["content"]


def test_log_probabilities_stand_in_deltas_and_in_the_part() -> None:
    logprob = TokenLogprob(token_id=5, text="é".encode(), logprob=-0.25, top=((6, b"e", -1.5),))
    events = written([ContentDelta(text="é", logprobs=(logprob,)), Finished(reason="stop"), USAGE])
    expected = {
        "token": "é",
        "logprob": -0.25,
        "bytes": [0xC3, 0xA9],
        "top_logprobs": [{"token": "e", "logprob": -1.5, "bytes": [0x65]}],
    }
    by_type = {event["type"]: event for event in events}
    assert by_type["response.output_text.delta"]["logprobs"] == [expected]
    assert by_type["response.output_text.done"]["logprobs"] == [expected]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [expected]


# ---- answers that are cut, and that fail -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "word"), [("length", "max_output_tokens"), ("content_filter", "content_filter")], ids=lambda x: x
)
def test_a_cut_answer_is_incomplete_and_says_why(reason: FinishReason, word: str) -> None:
    cut = [Started(prompt_tokens=7), ContentDelta(text="cut of"), Finished(reason=reason), USAGE]
    last = written(cut)[-1]
    assert last["type"] == "response.incomplete"
    for response in (last["response"], at_once(cut)):
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": word})
        assert response["output"][0]["status"] == "incomplete"
        assert response["completed_at"] is None


def test_half_a_call_is_never_said_to_be_done() -> None:
    def events(arguments: str) -> list[Event]:
        return [
            ToolCallBegin(index=0, id="functions.f:0", name="f"),
            ToolCallDelta(index=0, arguments=arguments),
            Finished(reason="length"),
            USAGE,
        ]

    half, whole = written(events('{"a": ')), written(events('{"a": 1}'))
    assert "response.function_call_arguments.done" not in [event["type"] for event in half]
    assert "response.function_call_arguments.done" in [event["type"] for event in whole]
    assert half[-1]["response"]["output"][0]["status"] == "incomplete"
    assert whole[-1]["response"]["output"][0]["status"] == "completed"
    assert half[-1]["response"]["status"] == whole[-1]["response"]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BackendError("the engine stopped"), "server_error", "the engine stopped"),
        (OverloadedError("64 requests wait", retry_after_s=1), "rate_limit_exceeded", "64 requests wait"),
        (KeyError("secret"), "server_error", "the server failed while answering; its log says why"),
        (None, "server_error", "the model's answer broke off: it has no end"),
    ],
    ids=["backend", "overloaded", "unexpected", "no end"],
)
def test_a_failure_half_way_ends_the_stream(error: Exception | None, code: str, message: str) -> None:
    last = written([Started(prompt_tokens=7), ContentDelta(text="Hel")], error)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": code, "message": message}
    (item,) = last["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "Hel")


def test_a_failure_half_way_leaves_no_half_response_at_once() -> None:
    with pytest.raises(BackendError, match="stopped"):
        asyncio.run(new_answer().whole(stream_of([ContentDelta(text="Hel")], BackendError("the engine stopped"))))


# ---- any answer --------------------------------------------------------------------------------------------------

ARGUMENTS = st.lists(st.text(max_size=5), max_size=3)
PARTS = st.one_of(st.tuples(st.just("text"), ARGUMENTS), st.tuples(st.just("call"), ARGUMENTS))


@given(st.lists(PARTS, max_size=5), st.sampled_from(get_args(FinishReason)))
def test_streams_say_what_the_response_at_once_says(parts: list[tuple[str, list[str]]], reason: FinishReason) -> None:
    events: list[Event] = [Started(prompt_tokens=7)]
    num_calls = 0
    for kind, pieces in parts:
        if kind == "text":
            events.extend(ContentDelta(text=piece) for piece in pieces)
        else:
            events.append(ToolCallBegin(index=num_calls, id=f"functions.f:{num_calls}", name="f"))
            events.extend(ToolCallDelta(index=num_calls, arguments=piece) for piece in pieces)
            num_calls += 1
    events.extend([Finished(reason=reason), USAGE])

    stream, response = written(events), at_once(events)
    assert without_ids(stream[-1]["response"]) == without_ids(response)
    # What a client that only adds up deltas has, is what the items hold.
    for index, item in enumerate(stream[-1]["response"]["output"]):
        mine = [event for event in stream if event.get("output_index") == index]
        assert (mine[0]["type"], mine[-1]["type"]) == ("response.output_item.added", "response.output_item.done")
        assert mine[-1]["item"] == item
        added = "".join(event["delta"] for event in mine if event["type"].endswith(".delta"))
        assert added == (item["content"][0]["text"] if item["type"] == "message" else item["arguments"])
    indices = [event["output_index"] for event in stream if "output_index" in event]
    assert indices == sorted(indices)
