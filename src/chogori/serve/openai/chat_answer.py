"""Answers of chat completions as OpenAI writes them: whole, or as a stream of chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from chogori.chat.completer import (
    ChatRequest,
    Choice,
    Completion,
    ContentDelta,
    Event,
    Finished,
    Repaired,
    RepairKind,
    Started,
    TokenLogprob,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.serve.api_errors import api_error_of
from chogori.serve.openai.errors import error_body
from chogori.serve.repairs import repairs_comment

Object = dict[str, Any]
DONE = b"data: [DONE]\n\n"


@dataclass(kw_only=True)
class ChatAnswer:
    """Writes one answer."""

    asked: ChatRequest
    model: str
    fingerprint: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._builtin = {tool.name for tool in self.asked.tools if tool.is_builtin}
        self._opened: set[int] = set()
        self._repairs: list[RepairKind] = []

    def whole(self, completion: Completion) -> Object:
        """The answer as one object."""
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(index, choice) for index, choice in enumerate(completion.choices)],
            "usage": usage_object(completion.usage),
        }

    async def frames(self, events: AsyncIterator[Event]) -> AsyncGenerator[bytes]:
        """The answer as server-sent events; an error on the way is the last of them."""
        try:
            async for event in events:
                for chunk in self.chunks(event):
                    yield frame(chunk)
            if comment := repairs_comment(self._repairs):
                yield comment
            yield DONE
        except Exception as error:
            yield frame(error_body(api_error_of(error)))

    def chunks(self, event: Event) -> Iterable[Object]:
        """The chunks that an event becomes."""
        match event:
            case Started():
                pass
            case ContentDelta():
                yield from self._opening(event.choice, "")
                if event.text or event.logprobs:
                    logprobs = logprobs_object(event.logprobs) if self.asked.sampling.logprobs else None
                    yield self._chunk(event.choice, {"content": event.text}, logprobs=logprobs)
            case ToolCallBegin():
                yield from self._opening(event.choice, None)
                yield self._chunk(event.choice, {"tool_calls": [{"index": event.index, **self._call(event, "")}]})
            case ToolCallDelta():
                piece = {"index": event.index, "function": {"arguments": event.arguments}}
                yield self._chunk(event.choice, {"tool_calls": [piece]})
            case Finished():
                yield from self._opening(event.choice, "")
                yield self._chunk(event.choice, {}, finish_reason=event.reason)
            case Usage():
                if self.include_usage:
                    yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_object(event)}
            case Repaired():
                self._repairs.append(event.kind)

    def _opening(self, choice: int, content: str | None) -> Iterable[Object]:
        """The first chunk of a choice says who speaks. Its content is null where a call comes first, as in OpenAI's."""
        if choice not in self._opened:
            self._opened.add(choice)
            yield self._chunk(choice, {"role": "assistant", "content": content})

    def _chunk(
        self, choice: int, delta: Object, *, logprobs: Object | None = None, finish_reason: str | None = None
    ) -> Object:
        chunk = self._head("chat.completion.chunk")
        chunk["choices"] = [{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]
        if self.include_usage:
            chunk["usage"] = None
        return chunk

    def _head(self, kind: str) -> Object:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _choice(self, index: int, choice: Choice) -> Object:
        calls = choice.message.tool_calls
        message: Object = {
            "role": "assistant",
            "content": None if calls and not choice.message.content else choice.message.content,
            "refusal": None,
        }
        if calls:
            begins = (ToolCallBegin(index=i, id=call.id, name=call.name) for i, call in enumerate(calls))
            message["tool_calls"] = [
                self._call(begin, call.arguments) for begin, call in zip(begins, calls, strict=True)
            ]
        logprobs = logprobs_object(choice.logprobs) if self.asked.sampling.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _call(self, call: ToolCallBegin, arguments: str) -> Object:
        kind = "builtin_function" if call.name in self._builtin else "function"
        return {"id": call.id, "type": kind, "function": {"name": call.name, "arguments": arguments}}


def frame(value: Object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"


def usage_object(usage: Usage) -> Object:
    """Usage with cached tokens where OpenAI has them, and where Moonshot has them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def token_text(token: bytes) -> str:
    """A token as text; a part of a character is a replacement mark, and its bytes stand beside it."""
    return token.decode("utf-8", errors="replace")


def logprobs_object(logprobs: Iterable[TokenLogprob]) -> Object:
    """Log-probabilities of a choice's content."""
    return {
        "content": [
            {
                **_logprob(token.text, _known(token.logprob)),
                "top_logprobs": [_logprob(text, logprob) for _, text, logprob in token.top],
            }
            for token in logprobs
        ],
        "refusal": None,
    }


def _known(logprob: float | None) -> float:
    assert logprob is not None, "only the first token of an echoed text has no probability"
    return logprob


def _logprob(token: bytes, logprob: float) -> Object:
    # JSON has no infinity; OpenAI, too, writes -9999 for what cannot occur.
    return {"token": token_text(token), "logprob": max(logprob, -9999.0), "bytes": list(token)}
