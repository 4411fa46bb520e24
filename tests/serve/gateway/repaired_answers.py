"""Answers of a scripted server, and what the repair makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from chogori.chat.completer import (
    ChatRequest,
    Completion,
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Started,
    TextRequest,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
    complete,
)
from chogori.chat.messages import Message, ToolSpec
from chogori.chat.tool_call_events import Marker
from chogori.serve.gateway.config import RepairConfig
from chogori.serve.gateway.repairing import RepairingCompleter

Asked = ChatRequest | TextRequest
SB, SE = Marker.SECTION_BEGIN.value, Marker.SECTION_END.value
CB, AB, CE = Marker.CALL_BEGIN.value, Marker.ARGUMENT_BEGIN.value, Marker.CALL_END.value
WEATHER = ToolSpec(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIME = ToolSpec(name="time", parameters={"type": "object"})
REQUEST = ChatRequest(messages=[Message(role="user", content="Weather?")], tools=[WEATHER, TIME])
DEFAULT = RepairConfig()
SKARDU = '{"city": "Skardu"}'


def answer(
    *pieces: str | tuple[str, str] | tuple[str, str, str],
    reason: FinishReason | None = None,
    completion_tokens: int = 5,
) -> list[Event]:
    """Texts, and calls as (name, arguments) or (id, name, arguments), as the events of one choice."""
    events: list[Event] = [Started(prompt_tokens=10)]
    index = 0
    for piece in pieces:
        if isinstance(piece, str):
            events.append(ContentDelta(text=piece))
            continue
        call_id, name, arguments = piece if len(piece) == 3 else (f"functions.{piece[0]}:{index}", *piece)
        events.append(ToolCallBegin(index=index, id=call_id, name=name))
        events.append(ToolCallDelta(index=index, arguments=arguments))
        index += 1
    events.append(Finished(reason=reason or ("tool_calls" if index else "stop")))
    return [*events, Usage(prompt_tokens=10, completion_tokens=completion_tokens, cached_tokens=4)]


class Server:
    """Answers in turn, by events or by what is raised; `asked` is what it was asked."""

    def __init__(self, *answers: list[Event] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Asked] = []

    async def stream(self, request: Asked) -> AsyncGenerator[Event]:
        self.asked.append(request)
        events = self.answers.pop(0)
        if isinstance(events, Exception):
            raise events
        for event in events:
            yield event


def repaired(
    *answers: list[Event] | Exception, request: Asked = REQUEST, config: RepairConfig = DEFAULT, **how: Any
) -> tuple[Completion, Server]:  # fmt: skip
    server = Server(*answers)
    return asyncio.run(complete(RepairingCompleter(server, config, **how), request)), server


def calls_of(completion: Completion, choice: int = 0) -> list[tuple[str, str, str]]:
    return [(call.id, call.name, call.arguments) for call in completion.choices[choice].message.tool_calls]
