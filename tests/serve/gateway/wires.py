"""What a model means to answer, what a server makes of it, and how the requests for it ended."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from tests.chat.misbehaving_server import chunk, events, usage


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that a model means."""

    name: str
    arguments: str
    schema: dict[str, Any]

    @property
    def value(self) -> Any:
        return json.loads(self.arguments)


@dataclass(frozen=True, kw_only=True)
class Meant:
    """What a model means to answer, and whose turn it is in the conversation."""

    calls: tuple[Call, ...] = ()
    content: str = ""
    names: tuple[str, ...] = ()
    """Of all declared tools."""

    def id_of(self, index: int) -> str:
        return f"functions.{self.calls[index].name}:{index}"


@dataclass(frozen=True, kw_only=True)
class Wire:
    """What a server makes of it."""

    content: str = ""
    calls: tuple[dict[str, Any], ...] = ()
    after: str = ""
    finish: str = "stop"
    indices: tuple[int, ...] | None = None
    pieces: str = "some"
    """How it is cut: `whole`, `characters` or `some`."""
    expected: Meant | None = None
    """Where it means something else than what it was made from."""

    def body(self, random_: random.Random) -> bytes:
        """The answer as server-sent events."""
        chunks: list[Any] = [
            chunk({"role": "assistant", "content": piece}) for piece in self._cut(self.content, random_)
        ]
        for number, call in enumerate(self.calls):
            index = self.indices[number] if self.indices is not None else number
            arguments = call["arguments"]
            pieces = [arguments] if arguments is None else self._cut(arguments, random_)
            head = {"index": index, "id": call["id"], "type": "function", "function": {"name": call["name"]}}
            if self.pieces == "whole":
                head["function"] = {"name": call["name"], "arguments": arguments}
                pieces = []
            chunks.append(chunk({"tool_calls": [head]}))
            chunks += [chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}) for piece in pieces]
        chunks += [chunk({"content": piece}) for piece in self._cut(self.after, random_)]
        return events(*chunks, chunk(finish=self.finish), usage(10, 5))

    def _cut(self, text: str, random_: random.Random) -> list[str]:
        if self.pieces == "whole":
            return [text] if text else []
        pieces: list[str] = []
        while text:
            size = 1 if self.pieces == "characters" else random_.randint(1, 30)
            pieces.append(text[:size])
            text = text[size:]
        return pieces


@dataclass
class Shares:
    """How the requests of each breaker ended."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    def count(self, breaker: str, outcome: str) -> None:
        counts = self.counts.setdefault(breaker, {})
        counts[outcome] = counts.get(outcome, 0) + 1

    def total(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for counts in self.counts.values():
            for outcome, count in counts.items():
                total[outcome] = total.get(outcome, 0) + count
        return total
