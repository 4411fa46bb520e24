"""A response as OpenAI writes it: whole, or as a stream of events. Both come from one reading of the answer."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Literal

from chogori.chat.completer import (
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Repaired,
    RepairKind,
    Started,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.errors import BackendError
from chogori.serve.api_errors import ApiError, api_error_of
from chogori.serve.repairs import repairs_comment
from chogori.serve.responses.output_items import Object, OutputCall, OutputMessage

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]
_INCOMPLETE: dict[FinishReason, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(kw_only=True)
class ResponseAnswer:
    """Writes one response."""

    parameters: Object
    """The request's, as the response repeats them."""
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._done: list[Object] = []
        self._open: OutputMessage | OutputCall | None = None
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._num_events = 0
        self.repairs: list[RepairKind] = []
        """What was put right on the way so far."""

    async def whole(self, events: AsyncIterator[Event]) -> Object:
        """The response as one object. Raises what the events raise."""
        async for event in events:
            for _ in self._read(event):
                pass
        return self._response(self._final_status())

    async def frames(self, events: AsyncIterator[Event]) -> AsyncGenerator[bytes]:
        """The response as server-sent events; a failure on the way is the last of them."""
        for kind in ("response.created", "response.in_progress"):
            yield self._frame({"type": kind, "response": self._response("in_progress")})
        try:
            async for event in events:
                for written in self._read(event):
                    yield self._frame(written)
            status = self._final_status()
            last = self._frame({"type": f"response.{status}", "response": self._response(status)})
        except Exception as error:
            last = self._frame({"type": "response.failed", "response": self._failed(api_error_of(error))})
        if comment := repairs_comment(self.repairs):
            yield comment
        yield last

    def _read(self, event: Event) -> Iterator[Object]:
        """The events that an event of the answer becomes."""
        match event:
            case Started():
                pass
            case ContentDelta():
                if event.text or event.logprobs:
                    if not isinstance(self._open, OutputMessage):
                        yield from self._begin(OutputMessage(output_index=self._next_index()))
                    assert isinstance(self._open, OutputMessage)
                    yield self._open.more(event)
            case ToolCallBegin():
                yield from self._begin(OutputCall(output_index=self._next_index(), call_id=event.id, name=event.name))
            case ToolCallDelta():
                assert isinstance(self._open, OutputCall)
                yield self._open.more(event)
            case Finished():
                if not self._done and self._open is None:
                    yield from self._begin(OutputMessage(output_index=0))  # clients expect an item, if an empty one
                self._reason = event.reason
                yield from self._end(was_cut=event.reason in _INCOMPLETE)
            case Usage():
                self._usage = event
            case Repaired():
                self.repairs.append(event.kind)

    def _next_index(self) -> int:
        return len(self._done) + (self._open is not None)

    def _begin(self, item: OutputMessage | OutputCall) -> Iterator[Object]:
        yield from self._end(was_cut=False)
        self._open = item
        yield from item.opening()

    def _end(self, *, was_cut: bool) -> Iterator[Object]:
        if self._open is not None:
            status = self._open.status_when_cut() if was_cut else "completed"
            yield from self._open.closing(status)
            self._done.append(self._open.item(status))
            self._open = None

    def _final_status(self) -> Literal["completed", "incomplete"]:
        if self._reason is None:
            raise BackendError("the model's answer broke off: it has no end")
        return "incomplete" if self._reason in _INCOMPLETE else "completed"

    def _failed(self, error: ApiError) -> Object:
        code = {400: "invalid_prompt", 429: "rate_limit_exceeded"}.get(error.status, "server_error")
        return {**self._response("failed"), "error": {"code": code, "message": error.message}}

    def _response(self, status: ResponseStatus) -> Object:
        output = [*self._done, *([self._open.item(self._open.status_when_cut())] if self._open is not None else [])]
        reason = _INCOMPLETE[self._reason] if status == "incomplete" and self._reason is not None else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": output,
            "usage": None if self._usage is None else _usage_object(self._usage),
            **self.parameters,
        }

    def _frame(self, event: Object) -> bytes:
        numbered = {**event, "sequence_number": self._num_events}
        self._num_events += 1
        data = json.dumps(numbered, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        return b"event: " + event["type"].encode() + b"\ndata: " + data + b"\n\n"


def _usage_object(usage: Usage) -> Object:
    return {
        "input_tokens": usage.prompt_tokens,
        # Writes that are billed apart: none are, prefixes are cached without being told.
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
