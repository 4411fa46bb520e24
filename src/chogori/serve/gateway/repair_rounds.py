"""Rounds in which the model puts a broken call right: it goes on with it, or makes it again."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from chogori.chat.completer import (
    ChatRequest,
    Completer,
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Repaired,
    RepairKind,
    Started,
    TextRequest,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.errors import BackendError, ContextLengthError, RequestError
from chogori.serve.gateway import second_requests
from chogori.serve.gateway.answer_reader import ChoiceReader
from chogori.serve.gateway.call_repair import BrokenCall, DeclaredTools, RawCall, SoundCall
from chogori.serve.gateway.config import RepairConfig
from chogori.serve.gateway.second_requests import Place

if TYPE_CHECKING:
    from chogori.chat.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_MENDED_CALLS = 8
"""Of one request: each round reads the prompt again, and an answer may hold a hundred broken calls."""
_NOT_OFFERED = (404, 405, 501)


@dataclass(kw_only=True)
class Spent:
    """What a request has consumed so far, over all rounds."""

    answer: Usage | None = None
    """Of the answer itself."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    rounds: int = 0
    repair_tokens: int = 0
    """That rounds have produced."""

    def add(self, usage: Usage) -> None:
        """Count a round."""
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.repair_tokens += usage.completion_tokens

    def total(self) -> Usage:
        """Over the answer and all rounds."""
        assert self.answer is not None, "an answer's usage comes last"
        return Usage(
            prompt_tokens=self.answer.prompt_tokens + self.prompt_tokens,
            completion_tokens=self.answer.completion_tokens + self.repair_tokens,
            cached_tokens=self.answer.cached_tokens + self.cached_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the rounds came to: a sound call, and by which way; or the call as broken as it was last."""

    call: SoundCall | BrokenCall
    kind: RepairKind


class RepairRounds:
    """Asks the server that answered, again.

    Args:
        completer: what answers.
        config: how far to go.
        tokenizer: of the model, for continuing calls by /v1/completions.
        is_partial: whether the server knows Moonshot's partial mode.
    """

    def __init__(
        self, completer: Completer, config: RepairConfig, *, tokenizer: Tokenizer | None, is_partial: bool
    ) -> None:
        self._completer = completer
        self._config = config
        self._tokenizer = tokenizer
        self._continues_as_text = config.continuation in ("auto", "completions") and tokenizer is not None
        self._continues_as_content = config.continuation == "partial" or (
            config.continuation == "auto" and is_partial and not self._continues_as_text
        )
        self._names_tools = True
        """Until the server has refused to be told which tool to call."""

    async def put_right(self, place: Place, broken: BrokenCall, tools: DeclaredTools, spent: Spent) -> Outcome:
        """Let the model put a call right.

        Raises what the server raises, but for refusals: what we ask of it is no mistake of the client's.
        """
        for round_index in range(self._config.max_rounds):
            left = self._config.max_tokens - spent.repair_tokens
            if left <= 0 or spent.rounds >= self._config.max_rounds * MAX_MENDED_CALLS:
                break
            spent.rounds += 1
            can_continue = self._continues_as_text or self._continues_as_content
            kind: RepairKind = "continued" if can_continue and broken.can_go_on and broken.name else "asked_again"
            try:
                if kind == "continued":
                    mended = await self._continued(place, broken, tools, spent, left)
                else:
                    mended = await self._asked_again(place, broken, tools, spent, left, round_index)
            except RequestError as error:
                return Outcome(call=replace(broken, reason=f"{broken.reason}; asked again, {error}"), kind="left_out")
            if isinstance(mended, SoundCall):
                return Outcome(call=mended, kind=kind)
            broken = mended
        return Outcome(call=broken, kind="left_out")

    async def _continued(
        self, place: Place, broken: BrokenCall, tools: DeclaredTools, spent: Spent, left: int
    ) -> SoundCall | BrokenCall:
        if self._continues_as_text:
            assert self._tokenizer is not None
            request = second_requests.continued_as_text(place, broken, max_tokens=left, tokenizer=self._tokenizer)
        else:
            request = second_requests.continued_as_content(place, broken, max_tokens=left)
        texts: list[str] = []
        reason: FinishReason = "stop"
        try:
            async with aclosing(self._events(request)) as events:
                async for event in events:
                    match event:
                        case ContentDelta():
                            texts.append(event.text)
                        case Finished():
                            reason = event.reason
                        case Usage():
                            spent.add(event)
                        case _:
                            pass
        except ContextLengthError:
            raise
        except (RequestError, BackendError) as error:
            if isinstance(error, BackendError) and error.status not in _NOT_OFFERED:
                raise
            logger.warning("calls are made again from now on, since they cannot be continued: %s", error)
            self._continues_as_text = self._continues_as_content = False
            return broken
        arguments = second_requests.continued_arguments(broken, "".join(texts))
        assert broken.name is not None
        call = RawCall(id=broken.raw_id, name=broken.name, arguments=arguments, ended=reason != "length")
        examined = tools.examined(call)
        if isinstance(examined, BrokenCall) and len(arguments) <= len(broken.arguments):
            return replace(examined, can_go_on=False)  # it did not go on, and will not
        return examined

    async def _asked_again(
        self, place: Place, broken: BrokenCall, tools: DeclaredTools, spent: Spent, left: int, round_index: int
    ) -> SoundCall | BrokenCall:
        def request(*, names_tool: bool) -> ChatRequest:
            return second_requests.asked_again(
                place, broken, max_tokens=left, round_index=round_index, names_tool=names_tool
            )

        try:
            call = await self._first_call(request(names_tool=self._names_tools), place, tools, spent)
        except ContextLengthError:
            raise
        except RequestError as error:
            if not self._names_tools:
                raise
            call = await self._first_call(request(names_tool=False), place, tools, spent)
            logger.warning("no tool is named from now on when a call is to be made again: %s", error)
            self._names_tools = False
        if call is None:
            return replace(broken, can_go_on=False)
        if broken.name is not None and call.name not in (broken.name, None):
            return replace(broken, reason=f"it was to call {broken.name}, and called {call.name}", can_go_on=False)
        return call if call.name is not None or broken.name is None else replace(call, name=broken.name)

    async def _first_call(
        self, request: ChatRequest, place: Place, tools: DeclaredTools, spent: Spent
    ) -> SoundCall | BrokenCall | None:
        """The first call of an answer, whatever else it says; None where there is none."""
        reader = ChoiceReader(0, tools, first_index=place.first_index, taken_ids=(), may_call=True)
        async with aclosing(self._events(request)) as events:
            async for event in events:
                match event:
                    case ContentDelta() | ToolCallBegin() | ToolCallDelta():
                        reader.feed(event)
                    case Finished():
                        reader.finish(event)
                    case Usage():
                        spent.add(event)
                    case Started() | Repaired():
                        pass
        return reader.told[0] if reader.told else reader.broken

    async def _events(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """The server's events; without a token limit where the context has no room for as many."""
        try:
            async for event in self._stream(request):
                yield event
        except ContextLengthError:
            unlimited = replace(request, sampling=replace(request.sampling, max_tokens=None))
            async for event in self._stream(unlimited):
                yield event

    async def _stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        # A Completer's iterator is closed to cancel it, so it is a generator or behaves as one.
        async with aclosing(cast(AsyncGenerator[Event], self._completer.stream(request))) as events:
            async for event in events:
                yield event
