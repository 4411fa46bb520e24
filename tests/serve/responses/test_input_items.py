"""Items read as a conversation: there and back, as responses write them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from chogori.chat.messages import Message, Role, ToolCall
from chogori.errors import RequestError
from chogori.serve.responses.input_items import Input, read_input

INPUT: TypeAdapter[Any] = TypeAdapter(Input)


def read(value: object, instructions: str | None = None) -> list[Message]:
    return read_input(INPUT.validate_python(value), instructions=instructions)


def call_item(call_id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "id": "fc_1", "call_id": call_id, "name": name, "arguments": arguments}


def output_item(call_id: str, output: object = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def items_of(message: Message) -> list[dict[str, Any]]:
    """A message as the Responses API writes it."""
    if message.role == "tool":
        return [output_item(message.tool_call_id or "", message.content)]
    if message.role != "assistant":
        return [{"role": message.role, "content": message.content}]
    part = {"type": "output_text", "text": message.content, "annotations": [], "logprobs": []}
    said = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    calls = [{**call_item(call.id, call.name, call.arguments), "status": "completed"} for call in message.tool_calls]
    return [*([said] if message.content or not calls else []), *calls]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Turns of a user and an assistant, whose calls are all answered, in any order."""
    messages: list[Message] = []
    num_calls = 0
    for _ in range(draw(st.integers(1, 4))):
        role: Role = "system" if draw(st.booleans()) else "user"
        messages.append(Message(role=role, content=draw(st.text(max_size=5))))
        names = draw(st.lists(st.sampled_from(["f", "g.h", "$i"]), max_size=3))
        calls = tuple(
            ToolCall(id=f"call_{num_calls + i}", name=name, arguments=draw(st.text(max_size=5)))
            for i, name in enumerate(names)
        )
        num_calls += len(calls)
        messages.append(Message(role="assistant", content=draw(st.text(max_size=5)), tool_calls=calls))
        for call in draw(st.permutations(calls)):
            messages.append(Message(role="tool", tool_call_id=call.id, content=draw(st.text(max_size=5))))
    return messages


@given(conversations(), st.data())
def test_a_conversation_written_as_items_is_read_back(messages: list[Message], data: st.DataObject) -> None:
    items = [item for message in messages for item in items_of(message)]
    for _ in range(data.draw(st.integers(0, 3))):
        thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "…"}
        items.insert(data.draw(st.integers(0, len(items))), thought)
    assert read(items) == messages


def test_a_string_is_what_the_user_says_and_instructions_come_first() -> None:
    assert read("Hello", "Be brief.") == [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hello"),
    ]


def test_parts_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}, {"type": "text", "text": "c"}]
    said = [{"type": "output_text", "text": "I "}, {"type": "refusal", "refusal": "won't"}]
    assert read([{"role": "developer", "content": parts}, {"role": "assistant", "content": said}]) == [
        Message(role="system", content="abc"),
        Message(role="assistant", content="I won't"),
    ]
    assert read([call_item("a"), output_item("a", parts)])[1].content == "abc"


def test_what_an_assistant_says_after_its_calls_belongs_to_the_same_message() -> None:
    said = {"role": "assistant", "content": "one "}
    turn = [said, call_item("a"), {**said, "content": "two"}, call_item("b"), output_item("b"), output_item("a")]
    assistant, *results = read(turn)
    assert (assistant.content, [call.id for call in assistant.tool_calls]) == ("one two", ["a", "b"])
    assert [result.tool_call_id for result in results] == ["b", "a"]


def test_texts_of_an_assistant_in_a_row_stay_apart() -> None:
    assert [message.content for message in read([{"role": "assistant", "content": text} for text in "ab"])] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "items",
    [[output_item("a")], [call_item("a"), output_item("b")], [call_item("a"), output_item("a"), output_item("a")]],
    ids=["no call", "another call", "answered already"],
)
def test_an_output_answers_an_open_call(items: list[dict[str, Any]]) -> None:
    where = f"input[{len(items) - 1}].call_id"
    with pytest.raises(RequestError, match=r"expected the call_id of an earlier function_call") as caught:
        read(items)
    assert caught.value.field == where
    assert str(caught.value).startswith(where)


def test_an_id_may_be_used_again_once_it_is_answered() -> None:
    assert len(read([call_item("a"), output_item("a"), call_item("a"), output_item("a")])) == 4


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "a valid string or a list of items"),
        ([], "at least 1 item"),
        ([{"role": "king", "content": "x"}], "'user', 'assistant', 'system' or 'developer'"),
        ([{"role": "user", "content": 5}], "a valid string or a list of parts"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "reads text only"),
        ([{"type": "item_reference", "id": "msg_1"}], "expected the item itself"),
        ([{"type": "computer_call"}], "expected message, function_call, function_call_output, reasoning"),
        ([{**call_item("a"), "arguments": {}}], "a valid string"),
        ([call_item("")], "at least 1 character"),
        (["Hello"], "a valid dictionary"),
    ],
)
def test_what_cannot_be_read_is_refused_once_and_by_name(value: object, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(value)
    (error,) = caught.value.errors()
    assert words in error["msg"]


def test_thoughts_alone_are_no_input() -> None:
    with pytest.raises(RequestError, match="input holds no message"):
        read([{"type": "reasoning"}], "Be brief.")
