"""The items of a response, and the events by which a stream writes them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from chogori.chat.completer import ContentDelta, ToolCallDelta
from chogori.serve.openai.chat_answer import logprobs_object

Object = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(kw_only=True)
class OutputMessage:
    """Text of the answer: a message with one part."""

    output_index: int
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _texts: list[str] = field(default_factory=list[str])
    _logprobs: list[Object] = field(default_factory=list[Object])

    def opening(self) -> Iterator[Object]:
        """The events with which it begins."""
        item: Object = {"id": self.id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        yield {"type": "response.output_item.added", "output_index": self.output_index, "item": item}
        yield {"type": "response.content_part.added", **self._place(), "part": self._part()}

    def more(self, delta: ContentDelta) -> Object:
        """The event that adds to its text."""
        logprobs = logprobs_object(delta.logprobs)["content"]
        self._texts.append(delta.text)
        self._logprobs.extend(logprobs)
        return {"type": "response.output_text.delta", **self._place(), "delta": delta.text, "logprobs": logprobs}

    def closing(self, status: Status) -> Iterator[Object]:
        """The events with which it ends."""
        part = self._part()
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        yield {"type": "response.output_text.done", **self._place(), **done}
        yield {"type": "response.content_part.done", **self._place(), "part": part}
        item = self.item(status)
        yield {"type": "response.output_item.done", "output_index": self.output_index, "item": item}

    def item(self, status: Status) -> Object:
        """All of it."""
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": [self._part()]}

    def status_when_cut(self) -> Status:
        """How it stands when the answer ended before its end."""
        return "incomplete"

    def _part(self) -> Object:
        text = "".join(self._texts)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}

    def _place(self) -> Object:
        return {"item_id": self.id, "output_index": self.output_index, "content_index": 0}


@dataclass(kw_only=True)
class OutputCall:
    """A function call of the answer."""

    output_index: int
    call_id: str
    name: str
    id: str = field(default_factory=lambda: f"fc_{uuid.uuid4().hex}")
    _arguments: list[str] = field(default_factory=list[str])

    def opening(self) -> Iterator[Object]:
        """The event with which it begins."""
        item = self.item("in_progress")
        yield {"type": "response.output_item.added", "output_index": self.output_index, "item": item}

    def more(self, delta: ToolCallDelta) -> Object:
        """The event that adds to its arguments."""
        self._arguments.append(delta.arguments)
        return {"type": "response.function_call_arguments.delta", **self._place(), "delta": delta.arguments}

    def closing(self, status: Status) -> Iterator[Object]:
        """The events with which it ends. Only whole arguments are said to be done: clients run the call on that."""
        item = self.item(status)
        if status == "completed":
            done = {"name": self.name, "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **self._place(), **done}
        yield {"type": "response.output_item.done", "output_index": self.output_index, "item": item}

    def item(self, status: Status) -> Object:
        """All of it."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self._arguments),
        }

    def status_when_cut(self) -> Status:
        """How it stands when the answer ended before its end: the call itself may be whole."""
        try:
            json.loads("".join(self._arguments))
        except (ValueError, RecursionError):
            return "incomplete"
        return "completed"

    def _place(self) -> Object:
        return {"item_id": self.id, "output_index": self.output_index}
