"""The Completer protocol: one request in, typed events out, whoever answers.

The engine, an OpenAI-compatible address and a program all are one; agents, servers and evaluations know only this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from chogori.chat.messages import JSON, Message, ToolCall, ToolSpec
from chogori.errors import RequestError

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise RequestError(f"{name} is {value!r}; expected {expected}", field=name)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. The defaults leave the model's distribution as it is."""

    max_tokens: int | None = None
    """Most tokens to produce: 0 only reads the prompt, None is as many as the context has room for."""
    temperature: float = 1.0
    """0 takes the likeliest token; other values divide the logits."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    top_k: int | None = None
    """Only this many likeliest tokens."""
    min_p: float = 0.0
    """Only tokens with at least this share of the likeliest token's probability."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already produced (OpenAI's definition)."""
    frequency_penalty: float = 0.0
    """Subtracted once per time that the token was already produced (OpenAI's definition)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or answer (arXiv 1909.05858)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logit of a token id."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends; they are not part of it."""
    seed: int | None = None
    """One seed, one answer, whatever else is running; None draws anew."""
    num_choices: int = 1
    """Answers to the same prompt (OpenAI's `n`)."""
    logprobs: bool = False
    """Report the log-probability of every produced token."""
    top_logprobs: int = 0
    """Report this many likeliest alternatives too."""
    ignore_eos: bool = False
    """Go on after an end token, up to `max_tokens`; for measurements."""

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 0, "at least 0")
        _check("temperature", self.temperature, 0 <= self.temperature <= 2, "0 to 2")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or null for all tokens")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1")
        _check("presence_penalty", self.presence_penalty, -2 <= self.presence_penalty <= 2, "-2 to 2")
        _check("frequency_penalty", self.frequency_penalty, -2 <= self.frequency_penalty <= 2, "-2 to 2")
        _check("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty <= 10, "above 0, at most 10")
        _check("n", self.num_choices, 1 <= self.num_choices <= 128, "1 to 128")
        _check("top_logprobs", self.top_logprobs, 0 <= self.top_logprobs <= 20, "0 to 20")
        _check("stop", self.stop, all(self.stop), "no empty text")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedTool:
    """The tool that must be called."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonFormat:
    """The answer's content is JSON."""

    schema: Mapping[str, JSON] | None = None
    """Its JSON schema; None for any object."""


ToolChoice = Literal["auto", "none", "required"] | NamedTool


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation to answer."""

    messages: Sequence[Message]
    """At least one. A last assistant message with `partial` is continued."""
    tools: Sequence[ToolSpec] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    """Whether one answer may hold several calls."""
    response_format: JsonFormat | None = None
    sampling: Sampling = Sampling()
    cache_key: str | None = None
    """What conversations share that begin alike, for servers that keep their caches by such a name."""
    model: str | None = None
    """Which of a backend's models; None for its only or first one."""
    request_id: str | None = None
    """What logs call this request; made up when None."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise RequestError("messages is empty; expected at least one message", field="messages")
        if any(message.partial for message in self.messages[:-1]):
            raise RequestError("only the last message can be partial", field="messages")
        names = {tool.name for tool in self.tools}
        if self.tool_choice == "required" and not names:
            raise RequestError("tool_choice is required, but tools is empty", field="tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.name not in names:
            raise RequestError(
                f"tool_choice names {self.tool_choice.name!r}; declared are {', '.join(sorted(names)) or 'no tools'}",
                field="tool_choice",
            )


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """A text to continue, without any conversation."""

    prompt: str | Sequence[int]
    """Text, or token ids of the model's own vocabulary."""
    sampling: Sampling = Sampling()
    echo: bool = False
    """Begin the answer with the prompt. With `sampling.logprobs` its tokens are reported too, with how likely each was
    behind those before it."""
    model: str | None = None
    request_id: str | None = None


# ---- what comes back -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token and how likely the model found it, in nats: one that was produced, or one of an echoed prompt.

    Where the model ended a continued text (`TextRequest`), its end token is the last.
    """

    token_id: int | None
    """None where an HTTP server told the token's text only."""
    text: bytes
    """Bytes of the token: possibly a part of a character."""
    logprob: float | None
    """None for the first token of an echoed prompt, before which there is nothing."""
    top: tuple[tuple[int | None, bytes, float], ...] = ()
    """The likeliest tokens: id, bytes, log-probability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The prompt is read; comes first, once."""

    prompt_tokens: int
    cached_tokens: int = 0
    """Of the prompt's tokens, those that an earlier request had left in the cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentDelta:
    """More of the answer's text; whole characters only."""

    choice: int = 0
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCallBegin:
    """A call begins; its name is known."""

    choice: int = 0
    index: int
    """Of this call among the choice's calls, from 0, without gaps."""
    id: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCallDelta:
    """More of the arguments' JSON text of the call that began last."""

    choice: int = 0
    index: int
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A choice is complete; nothing more comes for it."""

    choice: int = 0
    reason: FinishReason
    stop_sequence: str | None = None
    """The stop text that ended it, where one did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What the request consumed; comes last, once."""

    prompt_tokens: int
    completion_tokens: int
    """Over all choices."""
    cached_tokens: int = 0


RepairKind = Literal["raw_markers", "name", "id", "arguments", "finish_reason", "continued", "asked_again", "left_out"]
"""How an answer's tool calls were put right.

- raw_markers: they stood in its content, spelled in the model's own format
- name, id: a call's was written in another form than the declared or numbered one
- arguments: a call's were written in another form than its schema has, but said the same
- finish_reason: it contradicted the answer
- continued: the model went on with a call that had been cut off
- asked_again: the model made a call anew
- left_out: a call that the token limit had cut off could not be saved; the answer ends with `length`
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repaired:
    """A tool call was put right on its way; may come anywhere, also before Started."""

    choice: int = 0
    kind: RepairKind


Event = Started | ContentDelta | ToolCallBegin | ToolCallDelta | Finished | Usage | Repaired


class Completer(Protocol):
    """Anything that answers."""

    def stream(self, request: ChatRequest | TextRequest) -> AsyncIterator[Event]:
        """Answer a request: Started, then deltas and one Finished for each choice, then Usage; Repaired anywhere.

        Closing the iterator cancels the request and frees what it held. Raises an error of the `CompleterError` tree
        from the first or any later step.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One whole answer."""

    message: Message
    finish_reason: FinishReason
    stop_sequence: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A whole response."""

    choices: tuple[Choice, ...]
    usage: Usage
    repairs: tuple[RepairKind, ...] = ()
    """What was put right on the way, in order."""


async def complete(completer: Completer, request: ChatRequest | TextRequest) -> Completion:
    """Collect the events of a request: the same answer as its stream, at once."""
    texts: dict[int, list[str]] = {}
    calls: dict[int, list[tuple[ToolCallBegin, list[str]]]] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    finished: dict[int, Finished] = {}
    usage = Usage(prompt_tokens=0, completion_tokens=0)
    repairs: list[RepairKind] = []
    async for event in completer.stream(request):
        match event:
            case ContentDelta():
                texts.setdefault(event.choice, []).append(event.text)
                logprobs.setdefault(event.choice, []).extend(event.logprobs)
            case ToolCallBegin():
                calls.setdefault(event.choice, []).append((event, []))
            case ToolCallDelta():
                calls[event.choice][event.index][1].append(event.arguments)
            case Finished():
                finished[event.choice] = event
            case Usage():
                usage = event
            case Started():
                pass
            case Repaired():
                repairs.append(event.kind)
    choices = tuple(
        Choice(
            message=Message(
                role="assistant",
                content="".join(texts.get(index, ())),
                tool_calls=tuple(
                    ToolCall(id=begin.id, name=begin.name, arguments="".join(pieces))
                    for begin, pieces in calls.get(index, ())
                ),
            ),
            finish_reason=finished[index].reason,
            stop_sequence=finished[index].stop_sequence,
            logprobs=tuple(logprobs.get(index, ())),
        )
        for index in sorted(finished)
    )
    return Completion(choices=choices, usage=usage, repairs=tuple(repairs))
