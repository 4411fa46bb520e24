"""The chunks of an OpenAI-compatible server as events, whatever liberties the server takes with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

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
from chogori.chat.json_prefix import JsonPrefix
from chogori.chat.openai_logprobs import logprobs_of
from chogori.chat.token_estimate import count_prompt_tokens, num_earlier_calls
from chogori.chat.tool_call_events import name_of
from chogori.errors import BackendError

Object: TypeAlias = Mapping[str, object]

# What servers say in OpenAI's place; the words in front are OpenAI's.
_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "end_turn": "stop",
    "length": "length", "max_tokens": "length",
    "tool_calls": "tool_calls", "function_call": "tool_calls", "tool_use": "tool_calls",
    "content_filter": "content_filter",
}  # fmt: skip


class OpenAIAnswer:
    """Takes the chunks of one answer in turn.

    A call's name may come in pieces, its index or id may be missing, calls may be mixed or come whole; reasoning is
    left out. A whole response in place of a chunk is read like one. Where a server counts no tokens, `count_tokens`
    does; what Started says is always so counted unless the first chunk tells, since servers tell at the end.
    """

    def __init__(self, request: ChatRequest | TextRequest, *, count_tokens: Callable[[str], int]) -> None:
        self._request = request
        self._count_tokens = count_tokens
        first_call = num_earlier_calls(request)
        self._choices = [_Choice(index=i, first_call=first_call) for i in range(request.sampling.num_choices)]
        self._started: Started | None = None
        self._usage: Usage | None = None

    def feed(self, chunk: object) -> list[Event]:
        """The events of a chunk. Raises BackendError for one that cannot be understood."""
        fields = _object(chunk, "chunk")
        self._usage = _usage(fields.get("usage")) or self._usage
        events: list[Event] = []
        for value in _list(fields.get("choices"), "choices"):
            choice = _object(value, "choice")
            self._usage = _usage(choice.get("usage")) or self._usage  # as Moonshot sends it
            index = choice.get("index", 0)
            if not isinstance(index, int) or not 0 <= index < len(self._choices):
                raise BackendError(f"the server sent choice {index!r}; asked for {len(self._choices)}")
            events += self._choices[index].feed(choice, self._request.sampling.stop)
        if self._started is None:
            self._started = self._start()
            events.insert(0, self._started)
        return events

    def finish(self) -> list[Event]:
        """The stream is over. Raises BackendError where a choice is not."""
        unfinished = [choice.index for choice in self._choices if not choice.is_finished]
        if self._started is None or unfinished:
            raise BackendError(f"the server's stream ended before the answer did (choices {unfinished})")
        if self._usage is None:
            num_tokens = sum(self._count_tokens(text) for choice in self._choices for text in choice.said)
            return [Usage(prompt_tokens=self._started.prompt_tokens, completion_tokens=num_tokens)]
        return [self._usage]

    def _start(self) -> Started:
        if self._usage is not None:
            return Started(prompt_tokens=self._usage.prompt_tokens, cached_tokens=self._usage.cached_tokens)
        return Started(prompt_tokens=count_prompt_tokens(self._request, self._count_tokens))


@dataclass(kw_only=True, eq=False)
class _Call:
    """A call, as far as the server told it; `unsaid` waits until calls before it are over."""

    key: object
    """What tells it from the choice's other calls: the server's index, or a count where there is none."""
    id: str = ""
    name: str = ""
    unsaid: list[str] = field(default_factory=list[str])
    has_arguments: bool = False
    json: JsonPrefix = field(default_factory=JsonPrefix)


@dataclass(kw_only=True, eq=False)
class _Choice:
    """One choice. Calls are told in order, one after the other, as the protocol has it."""

    index: int
    first_call: int
    """Index in the conversation of its first call, for calls to which the server gives no id."""
    said: list[str] = field(default_factory=list[str])
    """All texts, for counting."""
    is_finished: bool = False
    _calls: list[_Call] = field(default_factory=list[_Call])
    _num_begun: int = 0
    _half: str = ""
    """Half of a UTF-16 pair: servers written in JavaScript cut characters there."""

    def feed(self, choice: Object, stops: Sequence[str]) -> list[Event]:
        message = choice.get("delta", choice.get("message"))
        delta: Object = {"content": choice.get("text")} if message is None else _object(message, "delta")
        calls = _list(delta.get("tool_calls"), "tool_calls")
        text = "".join(_text(delta.get(name), name) for name in ("content", "refusal"))
        logprobs = logprobs_of(choice.get("logprobs"))
        if self.is_finished:
            if text or calls:
                raise BackendError(f"the server went on with choice {self.index} after it had finished")
            return []
        events = self._content(text, logprobs)
        for call in calls:
            self._take_call(_object(call, "tool call"))
        events += self._tell_calls(is_last=False)
        if (reason := choice.get("finish_reason")) is not None:
            events += self._finish(reason, choice, stops)
        return events

    def _content(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[Event]:
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        text = _joined_pairs(text.removesuffix(self._half) if self._half else text)
        if not text and not logprobs:
            return []
        self.said.append(text)
        return [ContentDelta(choice=self.index, text=text, logprobs=logprobs)]

    def _take_call(self, delta: Object) -> None:
        function = _object(delta.get("function") or {}, "function")
        call_id, name = _text(delta.get("id"), "id"), _text(function.get("name"), "name")
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        arguments = _text(arguments, "arguments")
        call = self._call_of(delta.get("index"), call_id, name)
        call.id = call.id or call_id
        if not call.has_arguments and name != call.name:  # some repeat the whole name, others send the rest of it
            call.name += name
        if arguments:
            call.has_arguments = True
            call.unsaid.append(arguments)

    def _call_of(self, key: object, call_id: str, name: str) -> _Call:
        """The call that a delta continues, or a new one."""
        if key is not None:
            for call in reversed(self._calls):
                if call.key == key:
                    if name and call.has_arguments and call_id not in ("", call.id):
                        break  # some give every call the same index
                    return call
        elif self._calls:
            last = self._calls[-1]
            is_other = call_id not in ("", last.id) if call_id and last.id else bool(name and last.has_arguments)
            if not is_other:
                return last
        self._calls.append(_Call(key=("no index", len(self._calls)) if key is None else key))
        return self._calls[-1]

    def _tell_calls(self, *, is_last: bool) -> list[Event]:
        """Tell what can be told: of the first call that is not over, all; of calls behind it, nothing yet."""
        events: list[Event] = []
        for index, call in enumerate(self._calls):
            if index == self._num_begun:
                if not (call.has_arguments or is_last or index + 1 < len(self._calls)):
                    break  # its name may go on
                call.name = call.name or name_of(call.id).name
                if not call.name:
                    raise BackendError(f"the server sent call {index} of choice {self.index} without a name")
                call_id = call.id or f"functions.{call.name}:{self.first_call + index}"
                events.append(ToolCallBegin(choice=self.index, index=index, id=call_id, name=call.name))
                self._num_begun += 1
                self.said.append(call.name)
            if call.unsaid:
                arguments = "".join(call.unsaid)
                if index + 1 < self._num_begun and arguments.strip():
                    raise BackendError(f"the server went on with call {index} of choice {self.index} after its end")
                events += self._arguments(index, call, arguments)
            if not (is_last or call.json.is_complete):
                break
        return events

    def _arguments(self, index: int, call: _Call, arguments: str) -> list[Event]:
        half = arguments[-1] if "\ud800" <= arguments[-1] <= "\udbff" else ""
        arguments = _joined_pairs(arguments.removesuffix(half) if half else arguments)
        call.unsaid = [half] if half else []
        if not arguments or index + 1 < self._num_begun:
            return []
        call.json.feed(arguments)
        self.said.append(arguments)
        return [ToolCallDelta(choice=self.index, index=index, arguments=arguments)]

    def _finish(self, reason: object, choice: Object, stops: Sequence[str]) -> list[Event]:
        known = _REASONS.get(reason) if isinstance(reason, str) else None
        if known is None:
            raise BackendError(
                f"the server gave up with finish_reason {reason!r}; expected one of {', '.join(_REASONS)}"
            )
        events: list[Event] = [ContentDelta(choice=self.index, text="\ufffd")] if self._half else []
        events += self._tell_calls(is_last=True)
        if known == "stop" and self._calls:
            known = "tool_calls"
        # vLLM's and SGLang's names for it; OpenAI does not tell which text it was.
        stop = next((choice[name] for name in ("stop_reason", "matched_stop") if choice.get(name) in stops), None)
        self.is_finished = True
        stop_sequence = stop if isinstance(stop, str) else None
        return [*events, Finished(choice=self.index, reason=known, stop_sequence=stop_sequence)]


def _usage(value: object) -> Usage | None:
    if value is None:
        return None
    fields = _object(value, "usage")
    details = _object(fields.get("prompt_tokens_details") or {}, "prompt_tokens_details")
    cached = details.get("cached_tokens") or fields.get("cached_tokens") or 0
    counts = [fields.get("prompt_tokens") or 0, fields.get("completion_tokens") or 0, cached]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise BackendError(f"the server's usage is {counts}; expected counts of tokens")
    prompt_tokens, completion_tokens, cached_tokens = cast(list[int], counts)
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cached_tokens=cached_tokens)


def _joined_pairs(text: str) -> str:
    """The text with halves of UTF-16 pairs joined; a half alone becomes U+FFFD."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _object(value: object, what: str) -> Object:
    if not isinstance(value, Mapping):
        raise BackendError(f"the server sent {type(value).__name__} for a {what}; expected an object")
    return cast(Object, value)


def _list(value: object, what: str) -> Sequence[object]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BackendError(f"the server sent {type(value).__name__} for {what}; expected a list")
    return cast(Sequence[object], value)


def _text(value: object, what: str) -> str:
    if value is not None and not isinstance(value, str):
        raise BackendError(f"the server sent {type(value).__name__} for {what}; expected text")
    return value or ""
