"""One choice of a backend's answer, read event by event: content at once, calls when they are known to be sound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from chogori.chat.completer import (
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Repaired,
    RepairKind,
    TokenLogprob,
    ToolCallBegin,
    ToolCallDelta,
)
from chogori.chat.json_prefix import JsonPrefix
from chogori.chat.tool_call_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    IncompleteCall,
    Marker,
    ParsedEvent,
    Text,
)
from chogori.chat.tool_call_parser import TextParser
from chogori.serve.gateway.call_repair import BrokenCall, DeclaredTools, RawCall, SoundCall, sound_id
from chogori.serve.gateway.marker_watch import MarkerWatch


@dataclass(kw_only=True)
class _Open:
    """A call that is being told."""

    id: str
    name: str
    pieces: list[str] = field(default_factory=list[str])
    json: JsonPrefix = field(default_factory=JsonPrefix)


class ChoiceReader:
    """Takes the events of one choice, gives those that may leave, and keeps what is broken.

    Calls leave in order: behind a broken one the sound ones wait. Content is never held for a call; only what may be
    the beginning of a marker waits. Log-probabilities belong to the content up to the first marker.

    Args:
        choice: its number.
        tools: what was declared.
        first_index: of its first call, in the conversation.
        taken_ids: ids that calls of the conversation have.
        may_call: whether tools were declared at all; where none were, a marker is a word like others.
    """

    def __init__(
        self, choice: int, tools: DeclaredTools, *, first_index: int, taken_ids: Iterable[str], may_call: bool
    ) -> None:
        self._choice = choice
        self._tools = tools
        self._first_index = first_index
        self._taken = set(taken_ids)
        self._may_call = may_call
        self._watch = MarkerWatch()
        self._parser: TextParser | None = None
        """From the first marker on."""
        self._held: list[ContentDelta] = []
        """With log-probabilities: whole, while the last of them may end in the beginning of a marker."""
        self._open: _Open | None = None
        self._open_raw: _Open | None = None
        """That is spelled in the content."""
        self._calls: list[SoundCall | BrokenCall] = []
        self._num_told = 0
        self._has_markers = False
        self.content: list[str] = []
        """Texts that have left."""
        self.finished: Finished | None = None
        """As the server ended the choice."""
        self.is_over = False
        """Whether its Finished has left."""

    @property
    def broken(self) -> BrokenCall | None:
        """The first call that is not sound; those behind it have not left."""
        call = self._calls[self._num_told] if self._num_told < len(self._calls) else None
        return call if isinstance(call, BrokenCall) else None

    @property
    def told(self) -> list[SoundCall]:
        """The calls that have left."""
        return [call for call in self._calls[: self._num_told] if isinstance(call, SoundCall)]

    def feed(self, event: ContentDelta | ToolCallBegin | ToolCallDelta) -> list[Event]:
        """Go on. Returns what may leave."""
        match event:
            case ContentDelta():
                return [*(self._close_if_whole() if event.text else ()), *self._content(event)]
            case ToolCallBegin():
                closed = self._close(ended=True)
                self._open = _Open(id=event.id, name=event.name)
                return closed
            case ToolCallDelta():
                if self._open is None:  # closed by content that came after its end, and has left as it was
                    is_more = bool(event.arguments.strip())
                    return [Repaired(choice=self._choice, kind="arguments")] if is_more else []
                self._open.pieces.append(event.arguments)
                self._open.json.feed(event.arguments)
                return []

    def finish(self, event: Finished) -> list[Event]:
        """The choice has ended; its Finished leaves when nothing of it is broken."""
        self.finished = event
        was_cut = event.reason == "length"
        events = self._close(ended=not was_cut)
        if self._parser is not None:
            events += self._parsed(self._parser.finish())
        else:
            rest = self._watch.finish()
            events += self._release_held() if self._held else self._told_text(rest)
        if event.reason == "tool_calls" and not self._calls and not "".join(self.content).strip():
            lost = "the answer was to be a tool call, and held none"
            self._calls.append(BrokenCall(raw_id="", name=None, arguments="", reason=lost))
        return [*events, *self._ending()]

    def replace_broken(self, call: SoundCall) -> list[Event]:
        """Put a sound call into the place of the first broken one. Returns it, and what waited behind it."""
        assert self.broken is not None
        self._calls[self._num_told] = call
        return [*self._tell(), *self._ending()]

    def leave_out_broken(self) -> list[Event]:
        """Go on without the first broken call."""
        del self._calls[self._num_told]
        return [Repaired(choice=self._choice, kind="left_out"), *self._tell(), *self._ending()]

    def _ending(self) -> list[Event]:
        """The choice's Finished, once nothing of it is broken."""
        if self.finished is None or self.broken is not None:
            return []
        self.is_over = True
        reason = self._reason(self.finished.reason)
        repairs: list[Event] = []
        if reason != self.finished.reason and not self._has_markers:  # of which a wrong reason is a part
            repairs.append(Repaired(choice=self._choice, kind="finish_reason"))
        return [*repairs, replace(self.finished, reason=reason)]

    def _reason(self, told: FinishReason) -> FinishReason:
        if self._calls and told == "stop":
            return "tool_calls"
        return "stop" if told == "tool_calls" and not self._calls else told

    # ---- calls

    def _close_if_whole(self) -> list[Event]:
        """Content after a call ends it, where it is whole: else the content may have come in the midst of it."""
        return self._close(ended=True) if self._open is not None and self._open.json.is_complete else []

    def _close(self, *, ended: bool) -> list[Event]:
        if self._open is None:
            return []
        opened, self._open = self._open, None
        call = RawCall(id=opened.id, name=opened.name, arguments="".join(opened.pieces), ended=ended)
        examined = self._tools.examined(call)
        swallowed = _swallowed(call) if isinstance(examined, BrokenCall) else []
        return self._marked() + self._parsed(swallowed) if swallowed else self._take(examined)

    def _take(self, call: SoundCall | BrokenCall) -> list[Event]:
        self._calls.append(call)
        return self._tell()

    def _tell(self) -> list[Event]:
        events: list[Event] = []
        while self._num_told < len(self._calls):
            call = self._calls[self._num_told]
            if isinstance(call, BrokenCall):
                break
            index = self._num_told
            call_id = sound_id(call.raw_id, call.name, self._first_index + index, self._taken)
            self._taken.add(call_id)
            kinds: tuple[RepairKind, ...] = call.repairs if call_id == call.raw_id else (*call.repairs, "id")
            events += [Repaired(choice=self._choice, kind=kind) for kind in kinds]
            events.append(ToolCallBegin(choice=self._choice, index=index, id=call_id, name=call.name))
            events.append(ToolCallDelta(choice=self._choice, index=index, arguments=call.arguments))
            self._num_told += 1
        return events

    # ---- content

    def _content(self, event: ContentDelta) -> list[Event]:
        if self._parser is not None:
            return self._parsed(self._parser.feed(event.text))
        if not self._may_call:
            self.content.append(event.text)
            return [event]
        text = self._watch.feed(event.text)
        if self._watch.found is None:
            if not event.logprobs and not self._held:
                return self._told_text(text)
            self._held.append(event)
            return [] if self._watch.num_held else self._release_held()
        if self._held:
            whole = "".join(delta.text for delta in (*self._held, event))
            text = whole.removesuffix(self._watch.found)
        logprobs = [token for delta in (*self._held, event) for token in delta.logprobs]
        self._held = []
        self._parser = TextParser()
        before = self._told_text(text, logprobs=_of_text(logprobs, text))
        return before + self._marked() + self._parsed(self._parser.feed(self._watch.found))

    def _release_held(self) -> list[Event]:
        held, self._held = self._held, []
        self.content += [delta.text for delta in held]
        return [*held]

    def _told_text(self, text: str, *, logprobs: tuple[TokenLogprob, ...] = ()) -> list[Event]:
        if not (text or logprobs):
            return []
        self.content.append(text)
        return [ContentDelta(choice=self._choice, text=text, logprobs=logprobs)]

    def _marked(self) -> list[Event]:
        """That markers were found, said once."""
        events: list[Event] = [] if self._has_markers else [Repaired(choice=self._choice, kind="raw_markers")]
        self._has_markers = True
        return events

    def _parsed(self, parsed: Sequence[ParsedEvent]) -> list[Event]:
        return [event for one in parsed for event in self._parsed_one(one)]

    def _parsed_one(self, event: ParsedEvent) -> Iterator[Event]:
        match event:
            case Text():
                yield from self._told_text(event.text)
            case CallBegin():
                self._open_raw = _Open(id=event.id, name=event.name)
            case CallArguments():
                if self._open_raw is not None:
                    self._open_raw.pieces.append(event.text)
            case CallEnd():
                yield from self._close_raw(ended=True)
            case IncompleteCall():
                yield from self._incomplete(event)

    def _close_raw(self, *, ended: bool) -> list[Event]:
        assert self._open_raw is not None, "an end follows a beginning"
        opened, self._open_raw = self._open_raw, None
        call = RawCall(id=opened.id, name=opened.name, arguments="".join(opened.pieces), ended=ended)
        return self._take(self._tools.examined(call))

    def _incomplete(self, event: IncompleteCall) -> list[Event]:
        ended = event.broken_by is not None
        if event.broken_in == "arguments":
            if self._open_raw is None:  # its id names nothing
                self._open_raw = _Open(id=event.header.strip(), name="")
            self._open_raw.pieces = [event.arguments]
            return self._close_raw(ended=ended)
        # Some models forget the marker between a call's id and its arguments.
        header, brace, rest = event.header.partition("{")
        if not self._tools.may_be_id(header):
            # Nothing that could be called: a text that speaks of markers.
            return self._told_text(Marker.CALL_BEGIN.value + event.header)
        call = RawCall(id=header.strip(), name=event.name or "", arguments=brace + rest, ended=ended)
        if not ended and not brace and self._tools.name_meant(header) is None:
            begun = self._tools.name_begun(header)
            return self._take(
                BrokenCall(raw_id=call.id, name=begun, arguments="", reason="it was cut off within its name")
            )
        return self._take(self._tools.examined(call))


def _swallowed(call: RawCall) -> list[ParsedEvent]:
    """What stands in arguments, of which an engine's own parser missed the end; empty where it is the call alone."""
    if not any(marker.value in call.arguments for marker in Marker):
        return []
    parser = TextParser()
    head = Marker.CALL_BEGIN.value + (call.id.strip() or call.name) + Marker.ARGUMENT_BEGIN.value
    events = [*parser.feed(head + call.arguments), *parser.finish()]
    last = events[-1]
    if isinstance(last, IncompleteCall) and last.broken_by is None:
        if last.arguments == call.arguments:
            return []
        if call.ended:
            events[-1] = replace(last, broken_by=Marker.SECTION_END)
    return events


def _of_text(logprobs: Sequence[TokenLogprob], text: str) -> tuple[TokenLogprob, ...]:
    """The tokens that lie wholly in a text."""
    room = len(text.encode())
    kept: list[TokenLogprob] = []
    for token in logprobs:
        room -= len(token.text)
        if room < 0:
            break
        kept.append(token)
    return tuple(kept)
