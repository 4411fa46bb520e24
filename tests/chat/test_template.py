"""The template against its written form, against its Jinja twin in transformers, and against what must never happen."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import nodes
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from chogori.chat import Message, Tokenizer, ToolCall, ToolSpec
from chogori.chat.messages import message_from_openai
from chogori.chat.template import Rendered, render, render_text
from chogori.chat.tool_ids import canonical_tool_ids
from chogori.errors import MessageError
from tests.chat.conversations import openai_shape, random_conversation, random_text, random_tools

WEATHER = ToolSpec(name="天気", description="Weather <now>", parameters={"type": "object", "properties": {"city": {}}})
CONVERSATION = [
    Message(role="user", content="Oslo & Paris?", name="Alice"),
    Message(
        role="assistant",
        content="I look. ",
        tool_calls=(
            ToolCall(id="a", name="天気", arguments='{"city": "Oslo"}'),
            ToolCall(id="b", name="天気", arguments='{"city":"Paris"}'),
        ),
    ),
    Message(role="tool", content="15 °C\n", tool_call_id="b", name="weather station"),
    Message(role="tool", content="3 °C", tool_call_id="a"),
    Message(role="assistant", tool_calls=(ToolCall(id="a", name="f.g-h", arguments=""),)),
    Message(role="tool", tool_call_id="a"),
    Message(role="assistant", content="3 and 15."),
    Message(role="user"),
]
# Written by hand from K2.md; marker by marker, so that ids can be checked too.
BLOCKS = [
    '<|im_system|>tool_declare<|im_middle|>[{"type":"function","function":{"name":"天気","description":"Weather <now>",'
    '"parameters":{"type":"object","properties":{"city":{}}}}}]<|im_end|>',
    "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>",
    "<|im_user|>Alice<|im_middle|>Oslo & Paris?<|im_end|>",
    "<|im_assistant|>assistant<|im_middle|>",
    "I look. <|tool_calls_section_begin|>"
    '<|tool_call_begin|>functions.天気:0<|tool_call_argument_begin|>{"city": "Oslo"}<|tool_call_end|>'
    '<|tool_call_begin|>functions.天気:1<|tool_call_argument_begin|>{"city":"Paris"}<|tool_call_end|>'
    "<|tool_calls_section_end|><|im_end|>",
    "<|im_system|>weather station<|im_middle|>## Return of functions.天気:1\n15 °C\n<|im_end|>",
    "<|im_system|>tool<|im_middle|>## Return of functions.天気:0\n3 °C<|im_end|>",
    "<|im_assistant|>assistant<|im_middle|>",
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f.g-h:2<|tool_call_argument_begin|><|tool_call_end|>"
    "<|tool_calls_section_end|><|im_end|>",
    "<|im_system|>tool<|im_middle|>## Return of functions.f.g-h:2\n<|im_end|>",
    "<|im_assistant|>assistant<|im_middle|>",
    "3 and 15.<|im_end|>",
    "<|im_user|>user<|im_middle|><|im_end|>",
    "<|im_assistant|>assistant<|im_middle|>",
]
LEARNED = [4, 8, 11]
"""Of the blocks, those that the assistant wrote."""
"""Of the blocks, those of each message."""


# ---- against the written form ---------------------------------------------------------------------------------


def test_format_is_the_one_written_down(tokenizer: Tokenizer) -> None:
    rendered = render(CONVERSATION, [WEATHER], tokenizer=tokenizer, add_generation_prompt=True)
    assert rendered.text == "".join(BLOCKS)
    assert render_text(CONVERSATION, [WEATHER], add_generation_prompt=True) == rendered.text
    assert tokenizer.decode(rendered.ids) == rendered.text


def test_mask_covers_what_the_assistant_wrote(tokenizer: Tokenizer) -> None:
    rendered = render(CONVERSATION, [WEATHER], tokenizer=tokenizer, add_generation_prompt=True)
    assert _masked(rendered, tokenizer) == [BLOCKS[i] for i in LEARNED]


def test_first_system_message_replaces_the_default() -> None:
    written = "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
    assert render_text([Message(role="system", content="Be brief.")]) == written
    assert render_text([Message(role="system", name="policy")]) == "<|im_system|>policy<|im_middle|><|im_end|>"
    assert render_text([], add_generation_prompt=True) == "<|im_assistant|>assistant<|im_middle|>"
    late = [Message(role="user"), Message(role="system", content="Be brief.")]
    assert render_text(late) == BLOCKS[1] + BLOCKS[12] + written


def test_partial_message_is_left_open(tokenizer: Tokenizer) -> None:
    partial = [*CONVERSATION[:-2], Message(role="assistant", content="3 and 15.", partial=True)]
    for add_generation_prompt in (False, True):
        rendered = render(partial, [WEATHER], tokenizer=tokenizer, add_generation_prompt=add_generation_prompt)
        assert rendered.text == "".join(BLOCKS[:12]).removesuffix("<|im_end|>")
        assert _masked(rendered, tokenizer)[-1] == "3 and 15."


def test_bos_is_not_written(tokenizer: Tokenizer) -> None:
    assert render(CONVERSATION, tokenizer=tokenizer).ids[0] == tokenizer.id_of("<|im_system|>")


# ---- what must never happen ------------------------------------------------------------------------------------


@given(st.randoms(use_true_random=False))
def test_marker_text_in_a_message_never_becomes_a_marker(tokenizer: Tokenizer, random: Random) -> None:
    """The special ids are as many and the same as with every text emptied of markers."""
    messages, tools = random_conversation(random, spells_markers=True), random_tools(random, spells_markers=True)
    rendered = render(messages, tools, tokenizer=tokenizer, add_generation_prompt=True)
    plain = [
        Message(
            role=message.role,
            tool_calls=tuple(ToolCall(id=call.id, name="f", arguments="{}") for call in message.tool_calls),
            tool_call_id=message.tool_call_id,
            partial=message.partial,
        )
        for message in messages
    ]
    expected = render(plain, [WEATHER] if tools else [], tokenizer=tokenizer, add_generation_prompt=True)
    special = set(tokenizer.special_tokens.values())
    assert [i for i in rendered.ids if i in special] == [i for i in expected.ids if i in special]
    assert tokenizer.decode(rendered.ids) == rendered.text == render_text(messages, tools, add_generation_prompt=True)
    assert len(rendered.ids) == len(rendered.loss_mask)


@given(st.randoms(use_true_random=False))
def test_beginnings_of_a_conversation_are_beginnings_of_its_ids(tokenizer: Tokenizer, random: Random) -> None:
    messages, tools = random_conversation(random, spells_markers=True), random_tools(random, spells_markers=True)
    whole = render(messages, tools, tokenizer=tokenizer)
    for end in range(len(messages)):
        part = render(messages[:end], tools, tokenizer=tokenizer)
        assert whole.ids[: len(part.ids)] == part.ids
        assert whole.loss_mask[: len(part.ids)] == part.loss_mask
        assert len(part.ids) < len(whole.ids)


@given(st.randoms(use_true_random=False))
def test_generation_prompt_begins_the_answer(tokenizer: Tokenizer, random: Random) -> None:
    """What the model read before it answered is what it reads before the next turn."""
    messages = random_conversation(random, spells_markers=True)
    if messages[-1].partial:
        messages.pop()
    answer = Message(role="assistant", content=random_text(random, spells_markers=True))
    asked = render(messages, tokenizer=tokenizer, add_generation_prompt=True)
    answered = render([*messages, answer], tokenizer=tokenizer)
    assert answered.ids[: len(asked.ids)] == asked.ids
    assert not any(asked.loss_mask[len(render(messages, tokenizer=tokenizer).ids) :])
    assert all(answered.loss_mask[len(asked.ids) :])


# ---- the Jinja form --------------------------------------------------------------------------------------------


def test_jinja_renders_the_same_bytes(template: str) -> None:
    """3,000 conversations, in the shapes that clients, vLLM and SGLang hand over."""
    random = Random("chat_template.jinja")
    counts = {"partial": 0, "foreign ids": 0, "tools": 0, "dict arguments": 0, "part lists": 0}
    for _ in range(3_000):
        spells_markers = random.random() < 0.5
        messages = random_conversation(random, spells_markers=spells_markers)
        tools = random_tools(random, spells_markers)
        prompt = random.random() < 0.5
        shapes = [openai_shape(message, random) for message in messages]
        rendered = _jinja(template, shapes, tools, add_generation_prompt=prompt)
        assert rendered == render_text(messages, tools, add_generation_prompt=prompt)
        counts["partial"] += messages[-1].partial
        counts["foreign ids"] += canonical_tool_ids(messages).messages != messages
        counts["tools"] += bool(tools)
        calls = [call for shape in shapes for call in shape.get("tool_calls") or ()]
        counts["dict arguments"] += any(isinstance(call["function"]["arguments"], dict) for call in calls)
        counts["part lists"] += any(isinstance(shape.get("content"), list) for shape in shapes)
    assert min(counts.values()) > 500, "every kind must be among them"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=4, max_size=4), st.booleans())
def test_jinja_renders_any_text(template: str, texts: Sequence[str], prompt: bool) -> None:
    tools = [ToolSpec(name="f", description=texts[3])]
    messages = [
        Message(role="system", content=texts[0], name=texts[3]),
        Message(role="assistant", content=texts[1], tool_calls=(ToolCall(id=texts[0], name="f", arguments=texts[2]),)),
        Message(role="user", content=texts[2]),
    ]
    shapes = [message.to_openai() for message in messages]
    assert _jinja(template, shapes, tools, add_generation_prompt=prompt) == render_text(
        messages, tools, add_generation_prompt=prompt
    )


@given(st.randoms(use_true_random=False))
def test_continue_final_message_is_partial_mode(template: str, random: Random) -> None:
    """Where the message ends with its content: transformers cuts the text there, calls and all."""
    messages = random_conversation(random, spells_markers=False)
    last = Message(role="assistant", content="So" + random_text(random, spells_markers=False), partial=True)
    messages = [*messages[: -1 if messages[-1].partial else None], last]
    shapes = [message.to_openai() for message in messages]
    del shapes[-1]["partial"]
    assert _jinja(template, shapes, (), continue_final_message=True) == render_text(messages)


def test_jinja_of_absent_arguments_is_an_empty_object(template: str) -> None:
    shape = {"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f"}}]}
    assert _jinja(template, [shape], ()) == render_text([message_from_openai(shape)])


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (
            [{"role": "tool", "tool_call_id": "a", "content": "x"}],
            r"messages\[0\]\.tool_call_id is '?a'?; expected the id",
        ),
        (
            [
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "a"},
                {"role": "tool", "tool_call_id": "a"},
            ],
            r"messages\[2\]\.tool_call_id is '?a'?; expected the id of an earlier .* that has no result yet",
        ),
        ([{"role": "user"}, {"role": "function"}], r"messages\[1\]\.role is '?function'?; expected"),
        (
            [{"role": "assistant", "tool_calls": [{**CALL, "id": ""}]}, {"role": "tool", "tool_call_id": ""}],
            "tool_call_id",
        ),
        ([{"role": "user", "tool_calls": [CALL]}], r"messages\[0\].*has tool_calls; only an assistant calls tools"),
        ([{"role": "user", "partial": True}], r"messages\[0\].* ?partial.*; only a last assistant message"),
        (
            [{"role": "assistant", "partial": True}, {"role": "user"}],
            r"messages\[0\]\.partial is true; only (the|a) last .*message can be continued",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            r"messages\[0\]\.content.* part of type '?image_url'?.*this model reads text only",
        ),
        ([{"role": "user", "content": {"text": "x"}}], r"messages\[0\]\.content is .*; expected"),
        (
            [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": 3}}]}],
            r"messages\[0\]\.tool_calls.*arguments",
        ),
    ],
)
def test_both_refuse_alike(template: str, shapes: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(MessageError, match=named):
        render_text([message_from_openai(shape, f"messages[{i}]") for i, shape in enumerate(shapes)])
    with pytest.raises(jinja2.TemplateError, match=named):
        _jinja(template, shapes, ())


def test_vllm_and_sglang_hand_over_part_lists(template: str) -> None:
    """Both look in the syntax tree for a loop over `message['content']`; without it they join parts by line ends."""
    compiled = chat_template_utils._compile_jinja_template(template)
    loops = list(compiled.environment.parse(template).find_all(nodes.For))
    over_messages = [loop for loop in loops if loop.iter == nodes.Name("messages", "load")]
    assert [loop.target for loop in over_messages] == [nodes.Name("message", "store")]
    content = nodes.Getitem(nodes.Name("message", "load"), nodes.Const("content"), "load")
    assert any(loop.iter == content for loop in over_messages[0].find_all(nodes.For))


def test_transformers_tokenizes_and_masks_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """On a saved folder, where no text spells a marker: transformers reads markers in text, we do not."""
    tokenizer.save(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    random = Random("ids")
    num_masked = 0
    for _ in range(300):
        messages, tools = random_conversation(random, spells_markers=False), random_tools(random, False)
        ours = render(messages, tools, tokenizer=tokenizer, add_generation_prompt=True)
        shapes = [openai_shape(message, random) for message in messages]
        found = theirs.apply_chat_template(
            shapes,
            tools=[json.loads(json.dumps(tool.declaration)) for tool in tools] or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert found["input_ids"] == ours.ids
        # Of a message that is left open, transformers misses what follows the first token of the last character.
        if not messages[-1].partial:
            assert [bool(flag) for flag in found["assistant_masks"]] == ours.loss_mask
            num_masked += any(ours.loss_mask)
    assert num_masked > 100


# ---- errors ----------------------------------------------------------------------------------------------------


def test_lone_surrogate_names_its_field(tokenizer: Tokenizer) -> None:
    bad = "ab\ud83d"
    call = ToolCall(id="a", name="f", arguments=bad)
    for messages, field in (
        ([Message(role="user", content=bad)], r"messages\[0\]\.content"),
        ([Message(role="user"), Message(role="user", name=bad)], r"messages\[1\]\.name"),
        ([Message(role="assistant", tool_calls=(call,))], r"messages\[0\]\.tool_calls\[0\]\.function\.arguments"),
    ):
        with pytest.raises(MessageError, match=rf"^{field}: the text holds a lone surrogate") as caught:
            render(messages, tokenizer=tokenizer)
        assert caught.value.field == "messages"
    with pytest.raises(MessageError, match=r"^tools: the text holds a lone surrogate") as caught:
        render([], [ToolSpec(name="f", description=bad)], tokenizer=tokenizer)
    assert caught.value.field == "tools"


def test_tools_that_are_not_json_are_refused() -> None:
    circular: dict[str, Any] = {}
    circular["self"] = circular
    odd: Any = {"type": {1, 2}}
    for parameters, reason in ((circular, "Circular"), (odd, "set has no JSON form")):
        with pytest.raises(MessageError, match=rf"^tools\[1\] cannot be written as JSON: {reason}"):
            render_text([], [WEATHER, ToolSpec(name="f", parameters=parameters)])


def test_any_mapping_declares_a_tool() -> None:
    frozen = ToolSpec(name="天気", declaration=MappingProxyType({**WEATHER.declaration}))
    assert render_text([], [frozen]) == BLOCKS[0]


# ---- what the tests share --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer) -> str:
    return tokenizer.files()["chat_template.jinja"].decode()


def _jinja(template: str, shapes: Sequence[Any], tools: Sequence[ToolSpec], **options: Any) -> str:
    declarations: Any = [dict(tool.declaration) for tool in tools] or None
    texts, _ = chat_template_utils.render_jinja_template(
        [list(shapes)], tools=declarations, chat_template=template, **options
    )
    return texts[0]


def _masked(rendered: Rendered, tokenizer: Tokenizer) -> list[str]:
    """The text of each run of masked ids."""
    runs: list[list[int]] = []
    previous = False
    for token_id, is_learned in zip(rendered.ids, rendered.loss_mask, strict=True):
        if is_learned and not previous:
            runs.append([])
        if is_learned:
            runs[-1].append(token_id)
        previous = is_learned
    return [tokenizer.decode(run) for run in runs]
