"""K2's chat template: a conversation as the text, token ids and loss mask that the model reads and learns from.

`chat_template.jinja` beside this file is the same template for transformers, vLLM and SGLang; both give the same bytes.

Source: K2.md, "Wire format"; the current one of the templates in circulation. Nothing precedes the first message:
K2's template writes no [BOS].
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from chogori.chat.messages import Message, Role, ToolSpec
from chogori.chat.special_tokens import IM_END
from chogori.chat.tokenizer import Tokenizer
from chogori.chat.tool_call_events import Marker
from chogori.chat.tool_ids import canonical_tool_ids
from chogori.errors import MessageError, TokenizerError

IM_SYSTEM = "<|im_system|>"
IM_USER = "<|im_user|>"
IM_ASSISTANT = "<|im_assistant|>"
IM_MIDDLE = "<|im_middle|>"

ROLE_MARKERS: Mapping[Role, str] = {
    "system": IM_SYSTEM,
    "user": IM_USER,
    "assistant": IM_ASSISTANT,
    "tool": IM_SYSTEM,
}
DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
"""What a conversation begins with that does not begin with a system message."""
TOOL_DECLARE = "tool_declare"
"""Who speaks the block that declares the tools."""
RESULT_HEADING = "## Return of "
"""Before the id of the call that a tool's result answers, on its first line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A conversation as the model reads it."""

    text: str
    ids: list[int]
    """Token ids; `Tokenizer.decode` gives `text`."""
    loss_mask: list[bool]
    """One for each id: whether an assistant produced it. Its content, its calls with their markers, and the marker
    that ends its turn; no header, which the generation prompt supplies, and nothing of the other roles."""


class _Segment(NamedTuple):
    """What is encoded at once. Ends at markers, so that ids before a marker never depend on what follows it."""

    text: str
    is_marker: bool = False
    is_learned: bool = False
    field: str = ""
    """Where the text came from, for errors."""


def render(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    *,
    tokenizer: Tokenizer,
    add_generation_prompt: bool = False,
) -> Rendered:
    """Render a conversation; calls and results carry `functions.NAME:IDX` whatever ids they have.

    Only the template's own markers become special ids: marker text in a message is text. Of a growing conversation with
    the same tools, ids and mask of each beginning are a beginning of the whole's, save where it ends in a partial
    message. `add_generation_prompt` ends the text where an answer begins; a partial last message is left open, and
    the answer continues it.

    Raises MessageError, naming the field, for text that is not Unicode, tools that are not JSON, a result that answers
    no call, and a partial message before the last.
    """
    texts: list[str] = []
    ids: list[int] = []
    loss_mask: list[bool] = []
    for segment in _segments(messages, tools, add_generation_prompt):
        if segment.is_marker:
            segment_ids = [tokenizer.id_of(segment.text)]
        else:
            try:
                segment_ids = tokenizer.encode(segment.text)
            except TokenizerError as error:
                raise MessageError(f"{segment.field}: {error}", field=segment.field.partition("[")[0]) from error
        texts.append(segment.text)
        ids += segment_ids
        loss_mask += [segment.is_learned] * len(segment_ids)
    return Rendered(text="".join(texts), ids=ids, loss_mask=loss_mask)


def render_text(
    messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, add_generation_prompt: bool = False
) -> str:
    """The text of `render`, without encoding it. Raises MessageError as `render` does, but takes any string as text."""
    return "".join(segment.text for segment in _segments(messages, tools, add_generation_prompt))


def _segments(
    messages: Sequence[Message], tools: Sequence[ToolSpec], add_generation_prompt: bool
) -> Iterator[_Segment]:
    messages = canonical_tool_ids(messages).messages
    if tools:
        declarations = ",".join(_compact_json(tool, f"tools[{i}]") for i, tool in enumerate(tools))
        yield from _header(IM_SYSTEM, TOOL_DECLARE)
        yield _Segment(f"[{declarations}]", field="tools")
        yield _Segment(IM_END, is_marker=True)
    if messages and messages[0].role != "system":
        yield from _header(IM_SYSTEM, "system")
        yield _Segment(DEFAULT_SYSTEM)
        yield _Segment(IM_END, is_marker=True)
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.partial and i < len(messages) - 1:
            raise MessageError(f"{where}.partial is true; only the last message can be continued", field="messages")
        learned = message.role == "assistant"
        content = message.content
        if message.role == "tool":
            content = f"{RESULT_HEADING}{message.tool_call_id}\n{content}"
        yield from _header(ROLE_MARKERS[message.role], message.name or message.role, f"{where}.name")
        if content:
            yield _Segment(content, is_learned=learned, field=f"{where}.content")
        if message.tool_calls:
            yield from _section(message, where)
        if not message.partial:
            yield _Segment(IM_END, is_marker=True, is_learned=learned)
    if add_generation_prompt and not (messages and messages[-1].partial):
        yield from _header(IM_ASSISTANT, "assistant")


def _header(marker: str, speaker: str, field: str = "") -> Iterator[_Segment]:
    yield _Segment(marker, is_marker=True)
    yield _Segment(speaker, field=field)
    yield _Segment(IM_MIDDLE, is_marker=True)


def _section(message: Message, where: str) -> Iterator[_Segment]:
    yield _Segment(Marker.SECTION_BEGIN.value, is_marker=True, is_learned=True)
    for j, call in enumerate(message.tool_calls):
        field = f"{where}.tool_calls[{j}].function"
        yield _Segment(Marker.CALL_BEGIN.value, is_marker=True, is_learned=True)
        yield _Segment(call.id, is_learned=True, field=f"{field}.name")
        yield _Segment(Marker.ARGUMENT_BEGIN.value, is_marker=True, is_learned=True)
        yield _Segment(call.arguments, is_learned=True, field=f"{field}.arguments")
        yield _Segment(Marker.CALL_END.value, is_marker=True, is_learned=True)
    yield _Segment(Marker.SECTION_END.value, is_marker=True, is_learned=True)


def _compact_json(tool: ToolSpec, where: str) -> str:
    try:
        return json.dumps(tool.declaration, ensure_ascii=False, separators=(",", ":"), default=_as_dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"{where} cannot be written as JSON: {error}", field="tools") from error


def _as_dict(value: object) -> object:
    """Mappings other than dict, which `json` does not know."""
    if isinstance(value, Mapping):
        return dict(cast(Mapping[str, object], value))
    raise TypeError(f"{type(value).__name__} has no JSON form")
