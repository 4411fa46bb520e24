"""Render, then read: the conversation comes back. Older templates, and what is no conversation."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat import Message, Tokenizer, ToolCall, ToolSpec
from chogori.chat.conversation_reader import Conversation, parse_rendered, parse_rendered_text
from chogori.chat.special_tokens import K2_OFFSETS
from chogori.chat.template import DEFAULT_SYSTEM, render, render_text
from chogori.chat.tool_ids import canonical_tool_ids
from chogori.errors import MessageError
from tests.chat.conversations import random_conversation, random_tools

DEFAULT = f"<|im_system|>system<|im_middle|>{DEFAULT_SYSTEM}<|im_end|>"
CALLING = Message(role="assistant", tool_calls=(ToolCall(id="functions.f:0", name="f", arguments="{}"),))
ASKED = "<|im_user|>user<|im_middle|>Hi<|im_end|>"


@given(st.randoms(use_true_random=False), st.booleans())
def test_ids_give_the_conversation_back(tokenizer: Tokenizer, random: Random, prompt: bool) -> None:
    """Exactly, whatever markers its texts spell."""
    messages, tools = random_conversation(random, spells_markers=True), random_tools(random, spells_markers=True)
    ids = render(messages, tools, tokenizer=tokenizer, add_generation_prompt=prompt).ids
    assert parse_rendered(ids, tokenizer) == Conversation(canonical_tool_ids(messages).messages, tools)


@given(st.randoms(use_true_random=False), st.booleans())
def test_text_gives_the_conversation_back(random: Random, prompt: bool) -> None:
    messages, tools = random_conversation(random, spells_markers=False), random_tools(random, spells_markers=False)
    text = render_text(messages, tools, add_generation_prompt=prompt)
    assert parse_rendered_text(text) == Conversation(canonical_tool_ids(messages).messages, tools)


def test_three_thousand_conversations_come_back(tokenizer: Tokenizer) -> None:
    random = Random("conversation_reader")
    for _ in range(3_000):
        messages, tools = random_conversation(random, spells_markers=True), random_tools(random, spells_markers=True)
        ids = render(messages, tools, tokenizer=tokenizer).ids
        assert parse_rendered(ids, tokenizer) == (canonical_tool_ids(messages).messages, tools)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=5, max_size=5))
def test_any_text_comes_back(tokenizer: Tokenizer, texts: list[str]) -> None:
    tools = [ToolSpec(name="f", description=texts[0])]
    arguments = json.dumps({texts[1]: texts[2]})
    messages = [
        Message(role="user", content=texts[1]),
        Message(role="assistant", content=texts[2], tool_calls=(ToolCall(id="x", name="f", arguments=arguments),)),
        Message(role="tool", content=texts[3], tool_call_id="x"),
        Message(role="assistant", content=texts[4]),
    ]
    ids = render(messages, tools, tokenizer=tokenizer, add_generation_prompt=True).ids
    assert parse_rendered(ids, tokenizer) == (canonical_tool_ids(messages).messages, tools)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message(role="system", content=DEFAULT_SYSTEM)],
        [Message(role="system", content=DEFAULT_SYSTEM), Message(role="system", content="Be brief.")],
        [Message(role="system", content=DEFAULT_SYSTEM, name="policy"), Message(role="user", content="Hi")],
        [Message(role="user", content="Hi"), Message(role="system", content=DEFAULT_SYSTEM)],
        [Message(role="assistant", name="critic", partial=True)],
        [Message(role="user", name="system"), Message(role="user", name="tool_declare")],
        [Message(role="user"), Message(role="system", name="tool", content="## Return to the office")],
        [Message(role="user"), Message(role="system", name="note", content="## Return of functions.f:0\nx")],
        [CALLING, Message(role="system", content="## Return of functions.f:0\nx")],
    ],
)
def test_messages_that_look_like_what_the_template_adds(tokenizer: Tokenizer, messages: list[Message]) -> None:
    assert parse_rendered(render(messages, tokenizer=tokenizer).ids, tokenizer).messages == messages
    assert parse_rendered_text(render_text(messages)).messages == messages


def test_what_the_format_does_not_tell_apart_renders_the_same() -> None:
    for messages, read in (
        ([Message(role="system", content=DEFAULT_SYSTEM), Message(role="user")], [Message(role="user")]),
        ([Message(role="user", name="user")], [Message(role="user")]),
        ([Message(role="user"), Message(role="assistant", partial=True)], [Message(role="user")]),
        (
            [CALLING, Message(role="system", name="note", content="## Return of functions.f:0\nx")],
            [CALLING, Message(role="tool", name="note", content="x", tool_call_id="functions.f:0")],
        ),
    ):
        text = render_text(messages)
        assert parse_rendered_text(text).messages == read
        is_prompt = messages[-1].partial
        assert render_text(read, add_generation_prompt=is_prompt) == text


# ---- older templates -------------------------------------------------------------------------------------------


def test_older_templates_are_read(tokenizer: Tokenizer) -> None:
    tools = [ToolSpec(name="天気", description="Weather", parameters={"type": "object", "properties": {"é": {}}})]
    arguments = '{"city": "Zürich", "say": "\\"hi\\""}'
    turn = (
        Message(role="assistant", tool_calls=(ToolCall(id="functions.天気:0", name="天気", arguments=arguments),)),
        Message(role="tool", content="3 °C", tool_call_id="functions.天気:0"),
    )
    messages = [Message(role="user", content="Hi"), *turn, *turn]
    declared = json.dumps([tool.declaration for tool in tools])  # spaced, ASCII
    old_turn = (
        "<|im_assistant|>assistant<|im_middle|><|tool_calls_section_begin|><|tool_call_begin|>functions.天気:0"
        f"<|tool_call_argument_begin|>{json.dumps(arguments)}<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
        "<|im_system|>tool<|im_middle|>## Return of functions.天気:0\n3 °C<|im_end|>"
    )  # counted within the message, encoded twice
    old = f"<|im_system|>tool_declare<|im_middle|>{declared}<|im_end|>{DEFAULT}\n{ASKED}{old_turn}{old_turn}"
    expected = Conversation(canonical_tool_ids(messages).messages, tools)
    assert [call.id for message in expected.messages for call in message.tool_calls][1] == "functions.天気:1"
    assert parse_rendered_text(old) == expected
    assert parse_rendered(_encode_with_markers(old, tokenizer), tokenizer) == expected


@pytest.mark.parametrize("call_id", ["f", "f:0", "functions.f", "functions.f:7"])
def test_ids_as_clients_wrote_them(call_id: str) -> None:
    tools = [ToolSpec(name="f")]
    text = render_text([Message(role="user")], tools)
    text += _calling(call_id, "{}") + f"<|im_system|>f<|im_middle|>## Return of {call_id}\nx<|im_end|>"
    assert parse_rendered_text(text).messages[1:] == [
        Message(role="assistant", tool_calls=(ToolCall(id="functions.f:0", name="f", arguments="{}"),)),
        Message(role="tool", name="f", content="x", tool_call_id="functions.f:0"),
    ]


def test_id_that_names_no_tool_is_refused() -> None:
    text = render_text([], [ToolSpec(name="f"), ToolSpec(name="g")]) + _calling("call_9f3a", "{}")
    with pytest.raises(MessageError, match=r"'call_9f3a' does not say which tool.*functions\.NAME:IDX or one of f, g$"):
        parse_rendered_text(text)


@pytest.mark.parametrize("arguments", ['"', '"x"', '"[1]"', '"{"', "", '{"a": "{}"}', "not JSON"])
def test_other_arguments_stay_as_written(arguments: str) -> None:
    (message,) = parse_rendered_text(_calling("functions.f:0", arguments)).messages
    assert message.tool_calls[0].arguments == arguments


# ---- what is no conversation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hi", r"at character 0 is 'Hi'; expected <\|im_system\|> or <\|im_user\|> or <\|im_assistant\|>$"),
        (ASKED + "Hi", r"at character 40 is 'Hi'; expected"),
        ("<|im_user|>user", r"at the end is nothing more; expected <\|im_middle\|>$"),
        ("<|im_user|><|im_middle|>Hi<|im_end|>", r"at character 11 is '<\|im_middle\|>'; expected who speaks"),
        ("<|im_user|>user<|im_middle|>Hi", r"at the end is nothing more; expected <\|im_end\|>$"),
        (
            ASKED.replace("Hi", "Hi<|tool_calls_section_begin|>"),
            r"is '<\|tool_calls_section_begin\|>'; expected <\|im_end",
        ),
        ("<|im_assistant|>a<|im_middle|><|tool_calls_section_begin|>f", r"is 'f'; expected <\|tool_call_begin\|>"),
        (
            "<|im_assistant|>a<|im_middle|><|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|im_end|>",
            r"expected <\|tool_call_argument_begin\|>$",
        ),
        ("<|im_system|>tool_declare<|im_middle|>{<|im_end|>", "tool_declare block is not JSON"),
        ("<|im_system|>tool_declare<|im_middle|>{}<|im_end|>", r"tool_declare block is '\{\}'; expected a list"),
        ("<|im_system|>tool_declare<|im_middle|>[{}]<|im_end|>", r"tools\[0\]\.function"),
        (
            "<|im_system|>tool<|im_middle|>## Return of functions.f:0\nx<|im_end|>",
            r"messages\[0\]\.tool_call_id is 'functions\.f:0'; expected the id of an earlier",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(tokenizer: Tokenizer, text: str, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        parse_rendered_text(text)
    with pytest.raises(MessageError):
        parse_rendered(_encode_with_markers(text, tokenizer), tokenizer)


def test_error_names_the_token(tokenizer: Tokenizer) -> None:
    ids = render([Message(role="user", content="Hi")], tokenizer=tokenizer).ids
    for spoiled, position in (([*ids, tokenizer.bos_id], len(ids)), ([tokenizer.bos_id, *ids], 0)):
        with pytest.raises(MessageError, match=rf"at token {position} is '\[BOS\]'; expected <\|im_system\|> or"):
            parse_rendered(spoiled, tokenizer)


@given(st.randoms(use_true_random=False))
def test_damage_is_refused_or_read_as_what_it_then_says(tokenizer: Tokenizer, random: Random) -> None:
    """A lost or doubled marker never goes unseen: what is read, if anything, is what the damaged ids say."""
    messages = random_conversation(random, spells_markers=False)
    ids = render(messages, tokenizer=tokenizer).ids
    special = [i for i, token_id in enumerate(ids) if token_id in set(tokenizer.special_tokens.values())]
    at = random.choice(special)
    damaged = ids[:at] + ids[at + 1 :] if random.random() < 0.5 else [*ids[:at], ids[at], *ids[at:]]
    try:
        read = parse_rendered(damaged, tokenizer).messages
    except MessageError:
        return
    assert read != canonical_tool_ids(messages).messages
    assert damaged in [render(read, tokenizer=tokenizer, add_generation_prompt=prompt).ids for prompt in (False, True)]


def _calling(call_id: str, arguments: str) -> str:
    return (
        "<|im_assistant|>assistant<|im_middle|><|tool_calls_section_begin|><|tool_call_begin|>"
        f"{call_id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
    )


def _encode_with_markers(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a rendered text, marker by marker."""
    ids: list[int] = []
    while text:
        marker = next((name for name in K2_OFFSETS if text.startswith(name)), None)
        if marker is not None:
            ids.append(tokenizer.id_of(marker))
            text = text.removeprefix(marker)
            continue
        end = min((text.find(name) for name in K2_OFFSETS if name in text), default=len(text))
        ids += tokenizer.encode(text[:end])
        text = text[end:]
    return ids
