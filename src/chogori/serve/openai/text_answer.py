"""Answers of completions as OpenAI writes them: whole, or as a stream of chunks."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chogori.chat.completer import Completion, ContentDelta, Event, Finished, TokenLogprob, Usage
from chogori.serve.api_errors import api_error_of
from chogori.serve.openai.chat_answer import DONE, frame, token_text, usage_object
from chogori.serve.openai.errors import error_body

Object = dict[str, Any]


@dataclass(kw_only=True)
class TextAnswer:
    """Writes one answer to one or several prompts; choices are numbered prompt by prompt."""

    model: str
    fingerprint: str
    num_choices: int
    logprobs: bool
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._lengths: dict[int, int] = {}
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def whole(self, completions: Sequence[Completion]) -> Object:
        """The answer as one object."""
        choices: list[Object] = []
        for completion in completions:
            for choice in completion.choices:
                logprobs = self._logprobs(len(choices), choice.message.content, choice.logprobs)
                choices.append(self._choice(len(choices), choice.message.content, logprobs, choice.finish_reason))
        return {**self._head(), "choices": choices, "usage": usage_object(total(c.usage for c in completions))}

    async def frames(self, events: AsyncGenerator[tuple[int, Event]]) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, from events and the number of the prompt that each belongs to."""
        usages: list[Usage] = []
        try:
            async for prompt, event in events:
                match event:
                    case ContentDelta() if event.text or event.logprobs:
                        index = prompt * self.num_choices + event.choice
                        yield self._chunk(index, event.text, self._logprobs(index, event.text, event.logprobs), None)
                    case Finished():
                        index = prompt * self.num_choices + event.choice
                        yield self._chunk(index, "", None, event.reason)
                    case Usage():
                        usages.append(event)
                    case _:
                        pass
            if self.include_usage:
                yield frame({**self._head(), "choices": [], "usage": usage_object(total(usages))})
            yield DONE
        except Exception as error:
            yield frame(error_body(api_error_of(error)))

    def _chunk(self, index: int, text: str, logprobs: Object | None, reason: str | None) -> bytes:
        chunk = {**self._head(), "choices": [self._choice(index, text, logprobs, reason)]}
        if self.include_usage:
            chunk["usage"] = None
        return frame(chunk)

    def _head(self) -> Object:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    @staticmethod
    def _choice(index: int, text: str, logprobs: Object | None, reason: str | None) -> Object:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> Object | None:
        """Tokens of a text, and the place in the choice's text at which each begins, over all chunks of the choice."""
        if not self.logprobs:
            return None
        if index not in self._lengths:
            # What no token accounts for is a prompt that was echoed without its log-probabilities.
            self._lengths[index] = max(0, len(text) - len(token_text(b"".join(token.text for token in tokens))))
            self._decoders[index] = codecs.getincrementaldecoder("utf-8")("replace")
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._lengths[index])
            # A character of several tokens begins with the first and counts with the last of them.
            self._lengths[index] += len(self._decoders[index].decode(token.text))
        return {
            "tokens": [token_text(token.text) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                None
                if token.logprob is None
                else {token_text(text): _finite(logprob) for _, text, logprob in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity; OpenAI, too, writes -9999 for what cannot occur."""
    return None if logprob is None else max(logprob, -9999.0)


def total(usages: Iterable[Usage]) -> Usage:
    """The sum over several prompts."""
    usages = list(usages)
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )
