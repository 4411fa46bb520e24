"""A program as a Completer: a scripted policy that reads the request and says what to answer.

It stands where a model would, in tests and wherever a known policy is wanted. It proves that what runs around it works,
never that a model is clever; its name therefore always begins with "program:".
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeAlias

from chogori.chat.completer import (
    ChatRequest,
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Sampling,
    Started,
    TextRequest,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.chat.messages import Message, ToolCall
from chogori.chat.token_estimate import count_prompt_tokens, num_earlier_calls, tokens_of_four_bytes
from chogori.errors import BackendError, CompleterError, ConfigError, RequestError

Answer: TypeAlias = Message | str | Sequence[ToolCall] | AsyncIterator[Event]
"""A message, its text alone, its calls alone, or the events themselves, which are passed on exactly as they come."""

Policy: TypeAlias = Callable[[ChatRequest | TextRequest], "Answer | Awaitable[Answer]"]

NAME_PREFIX = "program:"


class ProgramCompleter:
    """A Completer whose answers a policy writes.

    The policy is asked once for each choice (`sampling.num_choices`), and the choices' events alternate as a batch's
    would. A policy that answers with events is asked once and answers for all. Stop texts and `max_tokens` cut the
    answer as they would a model's, a call that does not fit whole is left out; how tokens are drawn is not a program's
    concern, so a request for log-probabilities is refused unless the policy answers with events that hold them.

    `count_tokens` counts the tokens of any text. `delay_s` passes before each delta, by `sleep`. Whatever the policy
    raises leaves `stream` as an error of the CompleterError tree.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        chunk_chars: int = 4,
        count_tokens: Callable[[str], int] = tokens_of_four_bytes,
        delay_s: float = 0.0,
        name: str = "program:scripted",
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if not name.startswith(NAME_PREFIX):
            raise ConfigError(f"name is {name!r}; expected it to begin with {NAME_PREFIX!r}, as every program's does")
        if chunk_chars < 1:
            raise ConfigError(f"chunk_chars is {chunk_chars}; expected at least 1")
        if delay_s < 0:
            raise ConfigError(f"delay_s is {delay_s}; expected at least 0")
        self.name = name
        self._policy = policy
        self._chunk_chars = chunk_chars
        self._count_tokens = count_tokens
        self._delay_s = delay_s
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"ProgramCompleter({self.name!r})"

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """Answer a request. Raises RequestError for log-probabilities and BackendError where the policy fails."""
        answer = await self._ask(request)
        if isinstance(answer, AsyncIterator):
            try:
                async for event in answer:
                    yield event
            except Exception as error:
                raise self._failure(error) from error
            finally:
                if isinstance(answer, AsyncGenerator):
                    await answer.aclose()
            return
        if request.sampling.logprobs:
            raise RequestError(f"logprobs is true; {self.name} is a program, which has none", field="logprobs")
        messages = [_message_of(answer)]
        for _ in range(1, request.sampling.num_choices):
            messages.append(_message_of(await self._ask(request)))
        spoken = [self._speak(message, request) for message in messages]
        prompt_tokens = count_prompt_tokens(request, self._count_tokens)
        yield Started(prompt_tokens=prompt_tokens)
        for events in zip_longest(*(self._events(choice, what) for choice, what in enumerate(spoken))):
            for event in events:
                if event is not None:
                    if not isinstance(event, Finished):
                        await self._sleep(self._delay_s)
                    yield event
        yield Usage(prompt_tokens=prompt_tokens, completion_tokens=sum(what.num_tokens for what in spoken))

    async def _ask(self, request: ChatRequest | TextRequest) -> Answer:
        try:
            answer = self._policy(request)
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> CompleterError:
        if isinstance(error, CompleterError):
            return error
        return BackendError(f"{self.name} failed: {type(error).__name__}: {error}")

    def _speak(self, message: Message, request: ChatRequest | TextRequest) -> _Spoken:
        """What of a message is said before a stop text or the token limit."""
        limit = request.sampling.max_tokens
        content, stop_sequence = _cut_at_stop(message.content, request.sampling)
        num_tokens = self._count_tokens(content)
        reason: FinishReason = "stop"
        calls: list[ToolCall] = []
        if limit is not None and num_tokens > limit:
            content, stop_sequence, reason = self._first_tokens(content, limit), None, "length"
            num_tokens = self._count_tokens(content)
        elif stop_sequence is None:
            for call in _with_ids(message.tool_calls, request):
                num_tokens_with_call = num_tokens + self._count_tokens(call.name) + self._count_tokens(call.arguments)
                if limit is not None and num_tokens_with_call > limit:
                    reason = "length"
                    break
                num_tokens, reason = num_tokens_with_call, "tool_calls"
                calls.append(call)
        if isinstance(request, TextRequest) and request.echo:
            if not isinstance(request.prompt, str):
                raise RequestError(
                    f"echo is true and prompt is token ids; {self.name} has no vocabulary to read them", field="echo"
                )
            content = request.prompt + content
        return _Spoken(content=content, calls=calls, reason=reason, stop_sequence=stop_sequence, num_tokens=num_tokens)

    def _first_tokens(self, text: str, limit: int) -> str:
        """The longest beginning of a text that has at most `limit` tokens."""
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._count_tokens(text[:middle]) <= limit:
                fits = middle
            else:
                too_long = middle
        return text[:fits]

    def _events(self, choice: int, spoken: _Spoken) -> Iterator[Event]:
        for text in self._chunks(spoken.content):
            yield ContentDelta(choice=choice, text=text)
        for index, call in enumerate(spoken.calls):
            yield ToolCallBegin(choice=choice, index=index, id=call.id, name=call.name)
            for text in self._chunks(call.arguments):
                yield ToolCallDelta(choice=choice, index=index, arguments=text)
        yield Finished(choice=choice, reason=spoken.reason, stop_sequence=spoken.stop_sequence)

    def _chunks(self, text: str) -> Iterator[str]:
        for start in range(0, len(text), self._chunk_chars):
            yield text[start : start + self._chunk_chars]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spoken:
    """One choice, as far as it is said."""

    content: str
    calls: Sequence[ToolCall]
    reason: FinishReason
    stop_sequence: str | None
    num_tokens: int


def _message_of(answer: Answer) -> Message:
    if isinstance(answer, Message):
        return answer
    if isinstance(answer, str):
        return Message(role="assistant", content=answer)
    if isinstance(answer, AsyncIterator):
        raise BackendError("the program answered with events after a message; expected one kind for all choices")
    return Message(role="assistant", tool_calls=tuple(answer))


def _with_ids(calls: Sequence[ToolCall], request: ChatRequest | TextRequest) -> Iterator[ToolCall]:
    """The calls; one without an id gets the one K2 would give it, counted over the conversation."""
    for index, call in enumerate(calls, num_earlier_calls(request)):
        yield call if call.id else replace(call, id=f"functions.{call.name}:{index}")


def _cut_at_stop(text: str, sampling: Sampling) -> tuple[str, str | None]:
    """The text before the first stop text, and that; of two at one place, the longer."""
    found = [(text.find(stop), -len(stop), stop) for stop in sampling.stop if stop in text]
    if not found:
        return text, None
    position, _, stop = min(found)
    return text[:position], stop
