"""What a model is asked so that it puts a broken call right: to go on with it, or to make it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chogori.chat.completer import ChatRequest, NamedTool, Sampling, TextRequest
from chogori.chat.messages import Message, ToolSpec
from chogori.chat.template import render
from chogori.chat.tool_call_events import CallArguments, IncompleteCall, Marker
from chogori.chat.tool_call_parser import TextParser
from chogori.chat.tool_ids import tool_call_id
from chogori.serve.gateway.call_repair import BrokenCall, SoundCall

if TYPE_CHECKING:
    from chogori.chat.tokenizer import Tokenizer

MAX_QUOTED_CHARS = 20_000
"""Of a broken call's arguments that the model is shown."""


def _prompt(name: str) -> str:
    return (Path(__file__).parent / f"{name}.md").read_text(encoding="utf-8").strip()


ASK_AGAIN = _prompt("ask_again")
ASK_FOR_CALL = _prompt("ask_for_call")
CONTINUE_ARGUMENTS = _prompt("continue_arguments")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a conversation a call broke."""

    request: ChatRequest
    """As it was sent."""
    content: str
    """What the answer had said."""
    told: Sequence[SoundCall]
    """The calls before it."""
    first_index: int
    """Of the answer's first call, in the conversation."""


def asked_again(
    place: Place, broken: BrokenCall, *, max_tokens: int, round_index: int, names_tool: bool
) -> ChatRequest:
    """The request to make a call again: after the answer, with what was wrong, and only that tool to be called.

    `names_tool` says whether the server can be told which tool; else only that tool is declared.
    """
    request = place.request
    names = ", ".join(tool.name for tool in request.tools)
    said = broken.arguments[:MAX_QUOTED_CHARS] or "(none)"
    words = (
        ASK_FOR_CALL.format(reason=broken.reason, arguments=said, names=names)
        if broken.name is None
        else ASK_AGAIN.format(name=broken.name, reason=broken.reason, arguments=said)
    )
    tools: Sequence[ToolSpec] = request.tools
    if broken.name is not None and not names_tool:
        tools = [tool for tool in tools if tool.name == broken.name]
    forced = "required" if broken.name is None else NamedTool(name=broken.name)
    return replace(
        request,
        messages=[*_conversation(place), Message(role="user", content=words)],
        tools=tools,
        tool_choice=forced if names_tool else "auto",
        parallel_tool_calls=False,
        response_format=None,
        sampling=_sampling(request.sampling, max_tokens, round_index),
    )


def continued_as_text(place: Place, broken: BrokenCall, *, max_tokens: int, tokenizer: Tokenizer) -> TextRequest:
    """The request to go on with a call from where it was cut off: the rendered conversation up to there, as ids."""
    messages, said = _apart(place)
    begun = Message(role="assistant", content=said, partial=True)
    rendered = render([*messages, begun], place.request.tools, tokenizer=tokenizer)
    ids = [*rendered.ids, tokenizer.id_of(Marker.SECTION_BEGIN.value)]
    calls = [*((call.name, call.arguments) for call in place.told), (broken.name or "", broken.arguments)]
    for i, (name, arguments) in enumerate(calls):
        ids.append(tokenizer.id_of(Marker.CALL_BEGIN.value))
        ids += tokenizer.encode(tool_call_id(name, place.first_index + i))
        ids.append(tokenizer.id_of(Marker.ARGUMENT_BEGIN.value))
        ids += tokenizer.encode(arguments)
        if i < len(place.told):
            ids.append(tokenizer.id_of(Marker.CALL_END.value))
    sampling = _sampling(place.request.sampling, max_tokens, 0)
    return TextRequest(
        prompt=ids,
        # Where the server does not show markers, the end of the call is the end of the text.
        sampling=replace(sampling, stop=(Marker.CALL_END.value, Marker.SECTION_END.value)),
        model=place.request.model,
        request_id=place.request.request_id,
    )


def continued_as_content(place: Place, broken: BrokenCall, *, max_tokens: int) -> ChatRequest:
    """The request to go on with a call's arguments as an answer's text, in Moonshot's partial mode."""
    request = place.request
    return replace(
        request,
        messages=[
            *_conversation(place),
            Message(role="user", content=CONTINUE_ARGUMENTS.format(name=broken.name)),
            Message(role="assistant", content=broken.arguments, partial=True),
        ],
        tool_choice="none",
        response_format=None,
        sampling=_sampling(request.sampling, max_tokens, 0),
    )


def continued_arguments(broken: BrokenCall, further: str) -> str:
    """The arguments that a beginning and its continuation add up to, up to the end of the call."""
    parser = TextParser()
    head = f"{Marker.CALL_BEGIN.value}{broken.name}{Marker.ARGUMENT_BEGIN.value}"
    arguments = ""
    for event in [*parser.feed(head + broken.arguments + further), *parser.finish()]:
        match event:
            case CallArguments(index=0):
                arguments += event.text
            case IncompleteCall(index=0):
                return event.arguments
            case _:
                pass
    return arguments


def _conversation(place: Place) -> list[Message]:
    """The conversation with what the answer had said."""
    messages, said = _apart(place)
    return [*messages, Message(role="assistant", content=said)] if said.strip() else messages


def _apart(place: Place) -> tuple[list[Message], str]:
    """The conversation before the answer, and what the answer has said; a partial message is its beginning."""
    messages = [*place.request.messages]
    if not messages[-1].partial:
        return messages, place.content
    begun = messages.pop()
    return messages, begun.content + place.content


def _sampling(asked: Sampling, max_tokens: int, round_index: int) -> Sampling:
    return replace(
        asked,
        max_tokens=max_tokens,
        num_choices=1,
        logprobs=False,
        top_logprobs=0,
        stop=(),
        ignore_eos=False,
        # The same seed would bring the same mistake.
        seed=None if asked.seed is None else (asked.seed + 1 + round_index) % 2**63,
    )
