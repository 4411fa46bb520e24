"""What an answer's repairs look like from outside: a header, and in a stream a comment just before its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass

from chogori.chat.completer import Event, Repaired, RepairKind

REPAIRS_HEADER = "x-chogori-repairs"


def repairs_text(kinds: Iterable[RepairKind]) -> str:
    """`raw_markers=1, id=2`; empty where nothing was repaired."""
    return ", ".join(f"{kind}={count}" for kind, count in Counter(kinds).items())


def repair_headers(kinds: Iterable[RepairKind]) -> dict[str, str]:
    """The header that names the repairs; none where nothing was repaired."""
    text = repairs_text(kinds)
    return {REPAIRS_HEADER: text} if text else {}


def repairs_comment(kinds: Iterable[RepairKind]) -> bytes:
    """The repairs as a comment among server-sent events, which every client skips; empty where there were none."""
    text = repairs_text(kinds)
    return f": chogori-repairs {text}\n\n".encode() if text else b""


@dataclass(frozen=True, kw_only=True)
class BegunAnswer:
    """An answer whose first events are known, so that its headers can be written."""

    events: AsyncGenerator[Event]
    """All of them."""
    headers: dict[str, str]
    """Of the repairs that came before anything else."""


async def begun(events: AsyncIterator[Event]) -> BegunAnswer:
    """Read an answer up to its first event that is no repair. Raises what the answer raises."""
    first: list[Event] = []
    async for event in events:
        first.append(event)
        if not isinstance(event, Repaired):
            break
    headers = repair_headers(event.kind for event in first if isinstance(event, Repaired))
    return BegunAnswer(events=_all(first, events), headers=headers)


async def _all(first: Iterable[Event], rest: AsyncIterator[Event]) -> AsyncGenerator[Event]:
    for event in first:
        yield event
    async for event in rest:
        yield event
