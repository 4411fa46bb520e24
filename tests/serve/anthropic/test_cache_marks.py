"""How much of a prompt its client marked for the cache: a beginning of the whole prompt, in the model's own words."""

from __future__ import annotations

from typing import Any

import pytest

from chogori.chat.completer import ChatRequest
from chogori.chat.template import render_text
from chogori.serve.anthropic.cache_marks import marked_prompt
from chogori.serve.anthropic.message_request import Prompt

MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
TOOLS: list[dict[str, Any]] = [
    {"name": "clock", "input_schema": {"type": "object"}},
    {"name": "weather", "input_schema": {"type": "object"}},
]
SYSTEM: list[dict[str, Any]] = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
CALL: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "clock", "input": {}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "12:00"}


MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": [CALL]},
    {"role": "user", "content": [RESULT, {"type": "text", "text": "c"}]},
]


def body(**changes: object) -> Prompt:
    fields: dict[str, object] = {"model": "kimi-test", "messages": MESSAGES, "system": SYSTEM, "tools": TOOLS}
    return Prompt.model_validate({**fields, **changes})


def marked(items: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    return [{**item, **MARK} if i == index else item for i, item in enumerate(items)]


def in_messages(message: int, block: int) -> list[dict[str, Any]]:
    changed = {**MESSAGES[message], "content": marked(MESSAGES[message]["content"], block)}
    return [*MESSAGES[:message], changed, *MESSAGES[message + 1 :]]


def rendered(request: ChatRequest) -> str:
    return render_text(request.messages, request.tools).removesuffix("<|im_end|>")


CASES: list[tuple[dict[str, object], str]] = [
    ({"system": marked(SYSTEM, 0)}, "Be brief."),
    ({"system": marked(SYSTEM, 1)}, "Be kind."),
    ({"messages": in_messages(0, 0)}, "<|im_middle|>a"),
    ({"messages": in_messages(0, 1)}, "a\nb"),
    ({"messages": in_messages(1, 0)}, "<|tool_calls_section_end|>"),
    ({"messages": in_messages(2, 0)}, "12:00"),
    ({"messages": in_messages(2, 1)}, "<|im_middle|>c"),
    ({"cache_control": {"type": "ephemeral"}}, "<|im_middle|>c"),
    ({"messages": in_messages(0, 1), "system": marked(SYSTEM, 0), "tools": marked(TOOLS, 0)}, "a\nb"),
]


@pytest.mark.parametrize(("changes", "end"), CASES)
def test_the_marked_part_is_the_prompt_up_to_the_last_mark(changes: dict[str, object], end: str) -> None:
    request = marked_prompt(body(**changes), model="kimi-test")
    assert request is not None
    assert rendered(request).endswith(end)
    assert rendered(body().chat_request(model="kimi-test")).startswith(rendered(request))


def test_marked_tools_are_counted_up_to_the_last_mark() -> None:
    request = marked_prompt(body(tools=marked(TOOLS, 0)), model="kimi-test")
    assert request is not None
    assert [tool.name for tool in request.tools] == ["clock"]


def test_without_a_mark_nothing_is_counted() -> None:
    assert marked_prompt(body(), model="kimi-test") is None


def test_an_empty_block_can_be_marked() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "", **MARK}, {"type": "text", "text": "a"}]}]
    assert marked_prompt(body(messages=messages, system=None), model="kimi-test") is not None
