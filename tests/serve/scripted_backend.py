"""A backend whose answers a test writes, with a look at what it was asked and at what was cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from chogori.chat.completer import (
    ChatRequest,
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Started,
    TextRequest,
    TokenLogprob,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.chat.program import ProgramCompleter
from chogori.chat.token_estimate import tokens_of_four_bytes
from chogori.serve.backend import Gauges, ModelCard

Asked = ChatRequest | TextRequest


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer, piece by piece."""

    pieces: Sequence[str] = ()
    """Texts; each is one token."""
    calls: Sequence[tuple[str, str]] = ()
    """Names and arguments; the arguments come in two pieces."""
    reason: FinishReason | None = None
    """None for `tool_calls` where there are calls, else `stop`."""
    stop_sequence: str | None = None
    error: Exception | None = None
    """Raised after the pieces."""
    prompt_tokens: int = 7
    cached_tokens: int = 3


@dataclass
class ScriptedCompleter:
    """Answers with `reply(request)`; every choice of a request gets the same."""

    reply: Callable[[Asked], Reply]
    pause: Callable[[], Awaitable[None]] | None = None
    """Awaited before every piece, for tests that hold an answer half-way."""
    asked: list[Asked] = field(default_factory=list[Asked])
    num_running: int = 0
    num_cancelled: int = 0
    num_events: int = 0

    def stream(self, request: Asked) -> AsyncGenerator[Event]:
        return ProgramCompleter(self._counted).stream(request)

    async def _counted(self, request: Asked) -> AsyncGenerator[Event]:
        self.asked.append(request)
        self.num_running += 1
        whole = False
        try:
            async for event in self._events(request, self.reply(request)):
                self.num_events += 1
                yield event
            whole = True
        except Exception:
            whole = True
            raise
        finally:
            self.num_running -= 1
            self.num_cancelled += not whole

    async def _events(self, request: Asked, reply: Reply) -> AsyncGenerator[Event]:
        sampling = request.sampling
        if reply.error is not None and not reply.pieces:
            raise reply.error
        yield Started(prompt_tokens=reply.prompt_tokens, cached_tokens=reply.cached_tokens)
        num_tokens = 0
        for choice in range(sampling.num_choices):
            for text in reply.pieces:
                if self.pause is not None:
                    await self.pause()
                num_tokens += 1
                logprobs = (self._logprob(text, sampling.top_logprobs),) if sampling.logprobs else ()
                yield ContentDelta(choice=choice, text=text, logprobs=logprobs)
            if reply.error is not None:
                raise reply.error
            for index, (name, arguments) in enumerate(reply.calls):
                num_tokens += 3
                yield ToolCallBegin(choice=choice, index=index, id=f"functions.{name}:{index}", name=name)
                middle = len(arguments) // 2
                for piece in (arguments[:middle], arguments[middle:]):
                    if self.pause is not None:
                        await self.pause()
                    yield ToolCallDelta(choice=choice, index=index, arguments=piece)
            reason = reply.reason or ("tool_calls" if reply.calls else "stop")
            yield Finished(choice=choice, reason=reason, stop_sequence=reply.stop_sequence)
        yield Usage(prompt_tokens=reply.prompt_tokens, completion_tokens=num_tokens, cached_tokens=reply.cached_tokens)

    @staticmethod
    def _logprob(text: str, num_top: int) -> TokenLogprob:
        top = tuple((5 + i, f"alt{i}".encode(), -1.0 - i) for i in range(num_top))
        return TokenLogprob(token_id=5, text=text.encode(), logprob=-0.25, top=top)


@dataclass
class ScriptedBackend:
    """A served model, "kimi-test", whose answers are scripted. A token is four characters of the prompt."""

    completer: ScriptedCompleter
    models: Sequence[ModelCard] = (
        ModelCard(id="kimi-test", created=1_700_000_000, owned_by="chogori", context_length=4096),
    )
    state: Gauges = field(default_factory=Gauges)
    started: asyncio.Event | None = None
    """Where set, the backend is ready only after this event."""
    start_error: Exception | None = None
    num_stopped: int = 0
    running_when_stopped: int | None = None

    @classmethod
    def saying(cls, *pieces: str, calls: Sequence[tuple[str, str]] = (), **reply: object) -> ScriptedBackend:
        """A backend that always gives this answer."""
        answer = Reply(pieces=pieces, calls=calls, **reply)  # pyright: ignore[reportArgumentType]
        return cls(ScriptedCompleter(lambda _: answer))

    def count_tokens(self, request: ChatRequest) -> int:
        return sum(len(message.content) for message in request.messages) // 4

    def count_text(self, text: str) -> int:
        return tokens_of_four_bytes(text)

    def gauges(self) -> Gauges:
        return self.state

    async def start(self) -> None:
        if self.started is not None:
            await self.started.wait()
        if self.start_error is not None:
            raise self.start_error

    async def stop(self) -> None:
        self.num_stopped += 1
        self.running_when_stopped = self.completer.num_running
