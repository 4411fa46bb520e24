"""A Completer whose tool calls are all valid, over one whose are not.

Calls that were only misspelled are put right at once. What is broken or cut off goes back to the model, in a bounded
number of rounds; what even that does not put right ends as an error. A call stays a call of that tool, text stays text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from chogori.chat.completer import (
    ChatRequest,
    Completer,
    ContentDelta,
    Event,
    Finished,
    Repaired,
    Started,
    TextRequest,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.chat.tool_ids import canonical_tool_ids
from chogori.errors import BackendError
from chogori.serve.gateway.answer_reader import ChoiceReader
from chogori.serve.gateway.call_repair import DeclaredTools, SoundCall
from chogori.serve.gateway.config import RepairConfig
from chogori.serve.gateway.repair_rounds import RepairRounds, Spent
from chogori.serve.gateway.second_requests import Place

if TYPE_CHECKING:
    from chogori.chat.tokenizer import Tokenizer

MAX_REASON_CHARS = 500
"""Of what was wrong with a call, in an error."""
FAULT_OF_SERVER = 502
HOLD_STARTED_S = 5.0
"""Longest that Started waits for what it begins: proxies give up on answers that do not begin."""


class RepairingCompleter:
    """Answers of the Completer within, with every tool call valid: declared, numbered, and true to its schema.

    Content leaves as it comes; a call leaves when it is known to be valid, and Started with the first of either, or
    when either takes long. The ids of the conversation's calls go out as `functions.NAME:IDX`. Each thing put right is
    a Repaired event; Usage is the sum of all rounds. Raises MessageError for a schema that cannot be followed, and
    BackendError for a call that could not be put right.

    Args:
        completer: what answers.
        config: how far to go.
        tokenizer: of the model, for continuing calls by /v1/completions.
        is_partial: whether the server knows Moonshot's partial mode.
    """

    def __init__(
        self,
        completer: Completer,
        config: RepairConfig,
        *,
        tokenizer: Tokenizer | None = None,
        is_partial: bool = False,
    ) -> None:
        self._completer = completer
        self._rounds = RepairRounds(completer, config, tokenizer=tokenizer, is_partial=is_partial)

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """Answer a request."""
        if isinstance(request, TextRequest):
            events = _closable(self._completer.stream(request))
        else:
            events = _begun_late(self._put_right(_Asked.of(request)))
        async with aclosing(events):
            async for event in events:
                yield event

    async def _put_right(self, asked: _Asked) -> AsyncGenerator[Event | None]:
        """The events that may leave, in order; None where something came of which nothing may leave yet."""
        readers = [asked.reader(choice) for choice in range(asked.request.sampling.num_choices)]
        spent = Spent()
        async with aclosing(_closable(self._completer.stream(asked.request))) as events:
            async for event in events:
                for told in _told(event, readers, spent) or (None,):
                    yield told
        # Only now, so that no choice waits for another, and the server has one request of us at a time.
        for choice, reader in enumerate(readers):
            while not reader.is_over:
                for told in await self._mended(asked, choice, reader, spent):
                    yield told
        yield spent.total()

    async def _mended(self, asked: _Asked, choice: int, reader: ChoiceReader, spent: Spent) -> Sequence[Event]:
        """What may leave once the model has put the first broken call right. Raises BackendError where it has not."""
        broken = reader.broken
        assert broken is not None, "a choice that has not ended has a broken call"
        if not asked.tools.names:
            raise BackendError("the model called a tool, and the request allows no call", status=FAULT_OF_SERVER)
        place = Place(
            request=asked.request,
            content="".join(reader.content),
            told=reader.told,
            first_index=asked.first_index,
        )
        outcome = await self._rounds.put_right(place, broken, asked.tools, spent)
        if isinstance(outcome.call, SoundCall):
            # Of the first answer: the server numbered the call of another one.
            mended = replace(outcome.call, raw_id=broken.raw_id)
            return [Repaired(choice=choice, kind=outcome.kind), *reader.replace_broken(mended)]
        if reader.finished is not None and reader.finished.reason == "length":
            return reader.leave_out_broken()
        name = f"the tool {outcome.call.name!r}" if outcome.call.name else "a tool"
        raise BackendError(
            f"the model called {name} in a way that could not be put right: {outcome.call.reason[:MAX_REASON_CHARS]}",
            status=FAULT_OF_SERVER,
        )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request as it goes to the server, and what its calls are held against."""

    request: ChatRequest
    tools: DeclaredTools
    """Those that may be called."""
    first_index: int
    taken_ids: tuple[str, ...]

    @classmethod
    def of(cls, request: ChatRequest) -> _Asked:
        conversation = canonical_tool_ids(request.messages)
        return cls(
            request=replace(request, messages=conversation.messages),
            tools=DeclaredTools(() if request.tool_choice == "none" else request.tools),
            first_index=conversation.ids.next_index,
            taken_ids=tuple(conversation.ids.to_wire),
        )

    def reader(self, choice: int) -> ChoiceReader:
        return ChoiceReader(
            choice,
            self.tools,
            first_index=self.first_index,
            taken_ids=self.taken_ids,
            may_call=bool(self.request.tools),
        )


def _told(event: Event, readers: Sequence[ChoiceReader], spent: Spent) -> Sequence[Event]:
    """What leaves at once when an event has come."""
    match event:
        case ContentDelta() | ToolCallBegin() | ToolCallDelta():
            return readers[event.choice].feed(event)
        case Finished():
            return readers[event.choice].finish(event)
        case Usage():
            spent.answer = event
            return ()
        case Started() | Repaired():
            return (event,)


async def _begun_late(events: AsyncGenerator[Event | None]) -> AsyncGenerator[Event]:
    """The events, but Started, and what was repaired, only with what they belong to, or when that takes long.

    So what was repaired before anything has left can stand in a header, and what failed before has a status.
    """
    clock = asyncio.get_running_loop().time
    begun_at = clock()
    held: list[Event] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Repaired):
                held.insert(len(held) - any(isinstance(one, Started) for one in held), event)
                continue
            if event is not None:
                held.append(event)
            is_only_begun = event is None or isinstance(event, Started)
            if is_only_begun and clock() - begun_at < HOLD_STARTED_S:
                continue
            for one in held:
                yield one
            held = []


def _closable(events: AsyncIterator[Event]) -> AsyncGenerator[Event]:
    # A Completer's iterator is closed to cancel it, so it is a generator or behaves as one.
    return cast(AsyncGenerator[Event], events)
