"""Ids against a plain reading of the rule, there and back, and results that answer nothing."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat import Message, ToolCall
from chogori.chat.tool_ids import canonical_tool_ids, tool_call_id
from chogori.errors import MessageError
from tests.chat.conversations import random_conversation


def calls(*ids: str, name: str = "f") -> Message:
    return Message(role="assistant", tool_calls=tuple(ToolCall(id=each, name=name, arguments="{}") for each in ids))


def result(call_id: str) -> Message:
    return Message(role="tool", tool_call_id=call_id)


def ids_of(messages: list[Message]) -> list[str]:
    """Of calls and results, in order of appearance."""
    found: list[str] = []
    for message in messages:
        found += [call.id for call in message.tool_calls]
        found += [message.tool_call_id] if message.tool_call_id else []
    return found


@given(st.randoms(use_true_random=False))
def test_calls_are_numbered_and_results_follow(random: Random) -> None:
    """Against the rule read word by word: look back turn by turn, in a turn from its first call on."""
    messages = random_conversation(random, spells_markers=False)
    canonical, ids = canonical_tool_ids(messages)
    assert len(canonical) == len(messages)
    index = 0
    answered: set[str] = set()
    for i, (before, after) in enumerate(zip(messages, canonical, strict=True)):
        assert replace(after, tool_calls=before.tool_calls, tool_call_id=before.tool_call_id) == before
        for old, new in zip(before.tool_calls, after.tool_calls, strict=True):
            assert new == replace(old, id=f"functions.{old.name}:{index}")
            index += 1
        if before.role != "tool":
            continue
        expected = next(
            new.id
            for j in reversed(range(i))
            for old, new in zip(messages[j].tool_calls, canonical[j].tool_calls, strict=True)
            if old.id == before.tool_call_id and new.id not in answered
        )
        assert after.tool_call_id == expected
        answered.add(expected)
    assert ids.next_index == index


@given(st.randoms(use_true_random=False))
def test_every_id_has_its_way_back(random: Random) -> None:
    messages = random_conversation(random, spells_markers=False)
    canonical, ids = canonical_tool_ids(messages)
    restored = [
        replace(
            message,
            tool_calls=tuple(replace(call, id=ids.to_client[call.id]) for call in message.tool_calls),
            tool_call_id=ids.to_client[message.tool_call_id] if message.tool_call_id else None,
        )
        for message in canonical
    ]
    assert restored == messages
    wire_ids = [call.id for message in canonical for call in message.tool_calls]
    assert list(ids.to_client) == wire_ids, "every call once, in order"
    last_of = {client_id: wire_id for wire_id, client_id in ids.to_client.items()}
    assert ids.to_wire == last_of


@given(st.randoms(use_true_random=False))
def test_canonical_ids_stay(random: Random) -> None:
    messages = canonical_tool_ids(random_conversation(random, spells_markers=False)).messages
    again, ids = canonical_tool_ids(messages)
    assert again == messages
    assert all(wire_id == client_id for wire_id, client_id in ids.to_client.items())


@given(st.randoms(use_true_random=False))
def test_beginnings_are_numbered_alike(random: Random) -> None:
    messages = random_conversation(random, spells_markers=False)
    whole = canonical_tool_ids(messages).messages
    for end in range(len(messages)):
        assert canonical_tool_ids(messages[:end]).messages == whole[:end]


def test_ids_used_again() -> None:
    history = [calls("call_0", "call_0"), result("call_0"), calls("call_0"), result("call_0"), result("call_0")]
    expected = ["functions.f:0", "functions.f:1", "functions.f:0", "functions.f:2", "functions.f:2", "functions.f:1"]
    canonical, ids = canonical_tool_ids(history)
    assert ids_of(canonical) == expected
    assert (ids.next_index, ids.to_wire) == (3, {"call_0": "functions.f:2"})


def test_ids_counted_within_each_message_are_counted_over_all() -> None:
    """As an older template of K2 did."""
    history = [calls("functions.f:0"), result("functions.f:0"), calls("functions.f:0"), result("functions.f:0")]
    expected = ["functions.f:0", "functions.f:0", "functions.f:1", "functions.f:1"]
    assert ids_of(canonical_tool_ids(history).messages) == expected


def test_client_ids_that_look_like_other_calls_of_the_wire() -> None:
    history = [calls("functions.f:1", "functions.f:0"), result("functions.f:0"), result("functions.f:1")]
    expected = ["functions.f:0", "functions.f:1", "functions.f:1", "functions.f:0"]
    assert ids_of(canonical_tool_ids(history).messages) == expected


def test_result_that_answers_no_call_is_refused() -> None:
    with pytest.raises(MessageError, match=r"messages\[1\]\.tool_call_id is 'b'; .* no result yet: a, c$") as caught:
        canonical_tool_ids([calls("a", "c", ""), result("b")])
    assert caught.value.field == "messages"
    with pytest.raises(MessageError, match=r"messages\[2\]\.tool_call_id is 'a'; .* no result yet: there is none$"):
        canonical_tool_ids([calls("a"), result("a"), result("a")])
    with pytest.raises(MessageError, match=r"messages\[0\]\.tool_call_id is 'a'"):
        canonical_tool_ids([result("a"), calls("a")])
    with pytest.raises(MessageError, match=r"no result yet: 0, 1, 2, 3, 4 …$"):
        canonical_tool_ids([calls(*"0123456"), result("x")])


def test_long_conversations_take_linear_time() -> None:
    """20,000 open calls of one id: a search through them for each result would take minutes."""
    num_calls = 20_000
    history = [*[calls("call_0")] * num_calls, *[result("call_0")] * num_calls]
    canonical, ids = canonical_tool_ids(history)
    assert ids.next_index == num_calls
    answered = [message.tool_call_id for message in canonical[num_calls:]]
    assert answered == [tool_call_id("f", index) for index in reversed(range(num_calls))]
