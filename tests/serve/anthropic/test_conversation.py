"""What the model reads of Anthropic's system prompts and messages."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from chogori.chat.messages import Message, ToolCall
from chogori.chat.template import render_text
from chogori.errors import RequestError
from chogori.serve.anthropic.content_blocks import MessageParam, TextContent
from chogori.serve.anthropic.conversation import read_conversation

MESSAGES: TypeAdapter[list[MessageParam]] = TypeAdapter(list[MessageParam])
SYSTEM: TypeAdapter[Any] = TypeAdapter(TextContent)


def read(*messages: dict[str, Any], system: object = None) -> list[Message]:
    return read_conversation(
        None if system is None else SYSTEM.validate_python(system), MESSAGES.validate_python(list(messages))
    )


def user(*content: object) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(*content: object) -> dict[str, Any]:
    return {"role": "assistant", "content": content[0] if isinstance(content[0], str) else list(content)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def tool_use(id: str, name: str = "weather", **arguments: object) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def result(id: str, content: object = "fine", **more: object) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


# ---- text ---------------------------------------------------------------------------------------------------------


def test_system_prompt_and_strings() -> None:
    assert read(user("Hi"), assistant("Hello"), user("Bye"), system="Be brief.") == [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="Bye"),
    ]


def test_blocks_of_a_user_are_paragraphs_and_those_of_an_assistant_are_pieces() -> None:
    messages = read(user(text("a"), text(""), text("b")), assistant(text("c"), text(" d")), user("e"))
    assert [message.content for message in messages] == ["a\nb", "c d", "e"]
    assert read(user("x"), system=[text("a"), text("b")])[0].content == "a\nb"


def test_system_messages_keep_their_place() -> None:
    messages = read(
        user("a"), {"role": "system", "content": [text("From now on, German.")]}, assistant("b"), user("c"), system="s"
    )
    assert [message.role for message in messages] == ["system", "user", "system", "assistant", "user"]
    assert messages[2].content == "From now on, German."


BILLING = "x-anthropic-billing-header: cc_version=2.1.15.e6b; cc_entrypoint=cli; cch={:05x};"


@given(st.integers(0, 0xFFFFF), st.booleans())
def test_claude_codes_billing_block_never_reaches_the_prompt(number: int, is_joined: bool) -> None:
    billing = BILLING.format(number)
    words = "You are Claude Code."
    system = f"{billing}\n{words}" if is_joined else [text(billing), text(words)]
    assert read(user("x"), system=system) == read(user("x"), system=[text(words)])
    assert read(user("x"), system=billing) == read(user("x"))
    assert read(user("x"), {"role": "system", "content": billing}, user("y")) == read(user("x"), user("y"))
    assert billing in read(user(billing))[0].content  # a user may talk of it


def test_thinking_is_dropped() -> None:
    thoughts = {"type": "thinking", "thinking": "hmm", "signature": "c2ln"}
    redacted = {"type": "redacted_thinking", "data": "b64"}
    messages = read(user("a"), assistant(thoughts, redacted, text("b")), user("c"))
    assert [message.content for message in messages] == ["a", "b", "c"]
    assert [message.role for message in read(user("a"), assistant(thoughts), user("c"))] == ["user", "user"]


def test_a_last_assistant_message_is_continued() -> None:
    assert read(user("a"), assistant("Once upon"))[-1] == Message(role="assistant", content="Once upon", partial=True)
    assert read(user("a"), assistant(text("Once"), text(" upon")))[-1].partial
    assert not any(message.partial for message in read(user("a"), assistant("b"), user("c")))
    # Anthropic lets the last one be empty; that is the same as none.
    assert read(user("a"), assistant("")) == read(user("a"))


@pytest.mark.parametrize("content", ["", [], [text("")]])
def test_a_user_who_says_nothing_is_refused(content: object) -> None:
    with pytest.raises(RequestError, match=r"^messages\.1\.content: user messages must have non-empty content"):
        read(user("a"), {"role": "user", "content": content})


# ---- tools --------------------------------------------------------------------------------------------------------


def test_calls_and_results_have_the_ids_of_k2() -> None:
    messages = read(
        user("a"),
        assistant(text("Looking."), tool_use("toolu_1", city="東京"), tool_use("toolu_2", "clock")),
        user(result("toolu_2", "12:00"), result("toolu_1", [text("sunny"), text("dry")]), text("And tomorrow?")),
        assistant(tool_use("toolu_3", city="Skardu")),
        user(result("toolu_3")),
    )
    assert messages[1] == Message(
        role="assistant",
        content="Looking.",
        tool_calls=(
            ToolCall(id="functions.weather:0", name="weather", arguments='{"city": "東京"}'),
            ToolCall(id="functions.clock:1", name="clock", arguments="{}"),
        ),
    )
    assert messages[2:5] == [
        Message(role="tool", tool_call_id="functions.clock:1", content="12:00"),
        Message(role="tool", tool_call_id="functions.weather:0", content="sunny\ndry"),
        Message(role="user", content="And tomorrow?"),
    ]
    assert messages[5].tool_calls[0].id == messages[6].tool_call_id == "functions.weather:2"


def test_ids_of_any_form_give_the_same_prompt() -> None:
    def prompt(*ids: str) -> str:
        first, second = ids
        return render_text(
            read(user("a"), assistant(tool_use(first), tool_use(second)), user(result(first), result(second)))
        )

    assert prompt("toolu_1", "toolu_2") == prompt("call_x", "call_y") == prompt("z", "functions.weather:0")


def test_text_around_results_keeps_its_place() -> None:
    messages = read(
        user("a"),
        assistant(tool_use("1"), tool_use("2")),
        user(text("first"), result("1"), text("then"), result("2"), text("last")),
    )
    assert [(message.role, message.content) for message in messages[2:]] == [
        ("user", "first"),
        ("tool", "fine"),
        ("user", "then"),
        ("tool", "fine"),
        ("user", "last"),
    ]


def test_the_model_is_told_that_a_tool_failed() -> None:
    def told(block: dict[str, Any]) -> str:
        return read(user("a"), assistant(tool_use("1")), user(block))[-1].content

    assert told(result("1", "no such file", is_error=True)) == "Error: no such file"
    assert told(result("1", None, is_error=True)) == "Error: the tool failed"
    assert told(result("1", "no such file", is_error=False)) == "no such file"
    assert told({"type": "tool_result", "tool_use_id": "1"}) == ""


def test_results_may_come_in_several_messages_of_one_turn() -> None:
    messages = read(
        user("a"),
        assistant(tool_use("1")),
        assistant(tool_use("2")),
        {"role": "system", "content": "hurry"},
        user(result("1")),
        user(result("2")),
    )
    assert [message.tool_call_id for message in messages[-2:]] == ["functions.weather:0", "functions.weather:1"]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (
            [user("a"), assistant(tool_use("1")), user("b")],
            "messages.2: `tool_use` ids were found without `tool_result` blocks immediately after: 1.",
        ),
        (
            [user("a"), assistant(tool_use("1"), tool_use("2")), user(result("1")), assistant("b"), user("c")],
            "messages.3: `tool_use` ids were found without `tool_result` blocks immediately after: 2.",
        ),
        (
            [user("a"), assistant(text("b"), tool_use("1"))],
            "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: 1.",
        ),
        (
            [user(text("a"), result("1"))],
            "messages.0.content.1: unexpected `tool_use_id` found in `tool_result` blocks: 1.",
        ),
        (
            [user("a"), assistant(tool_use("1")), user(result("1"), result("1"))],
            "messages.2.content.1: unexpected `tool_use_id` found in `tool_result` blocks: 1.",
        ),
        (
            [user("a"), assistant(tool_use("1"), tool_use("1")), user(result("1"))],
            "messages.1.content.1: `tool_use` ids must be unique; 1 was used before",
        ),
    ],
)
def test_calls_and_results_that_do_not_match_are_refused(messages: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(problem)}"):
        read(*messages)
