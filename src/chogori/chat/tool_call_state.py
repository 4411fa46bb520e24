"""The grammar of K2's answers: where in an answer one stands, given its text and its markers in turn."""

from __future__ import annotations

from enum import Enum, auto

from chogori.chat.tool_call_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    IncompleteCall,
    Marker,
    ParsedEvent,
    Text,
    name_of,
)


class _Place(Enum):
    CONTENT = auto()
    HEADER = auto()
    ARGUMENTS = auto()
    ENDED = auto()


class ToolCallState:
    """Takes text and markers, however they were told apart, and reports what they mean.

    A call reaches from its begin marker to its end marker. The markers of a section decide nothing: models forget
    them, so a call without one is a call, and a marker that closes what is not open means nothing. Any other marker in
    a call breaks it, and is then read as if the call were not there. Text outside calls is content, inside a section
    too; white space behind a marker is content only when more than white space follows.
    """

    def __init__(self) -> None:
        self._place = _Place.CONTENT
        self._num_calls = 0
        self._call: CallBegin | None = None
        self._header: list[str] = []
        self._arguments: list[str] = []
        self._is_behind_marker = False
        self._space: list[str] = []

    @property
    def ended(self) -> bool:
        """Whether the message is over; nothing behind its end is read."""
        return self._place is _Place.ENDED

    @property
    def in_arguments(self) -> bool:
        """Whether text is now read as arguments."""
        return self._place is _Place.ARGUMENTS

    @property
    def arguments(self) -> str:
        """The arguments so far of the call that is open."""
        return "".join(self._arguments)

    def text(self, text: str) -> list[ParsedEvent]:
        """Take text that holds no marker."""
        if not text:
            return []
        match self._place:
            case _Place.CONTENT:
                return self._content(text)
            case _Place.HEADER:
                self._header.append(text)
                return []
            case _Place.ARGUMENTS:
                self._arguments.append(text)
                return [CallArguments(index=self._call.index, text=text)] if self._call else []
            case _Place.ENDED:
                return []

    def marker(self, marker: Marker) -> list[ParsedEvent]:
        """Take a marker."""
        if self._place is _Place.HEADER and marker is Marker.ARGUMENT_BEGIN:
            return self._begin_arguments()
        if self._place is _Place.ARGUMENTS:
            if marker is Marker.ARGUMENT_BEGIN:  # said twice
                return []
            if marker is Marker.CALL_END and self._call is not None:
                end = CallEnd(index=self._call.index)
                self._leave_call()
                return [end]
        return self.break_off(marker) + self._outside_calls(marker)

    def break_off(self, by: Marker | None, *, num_argument_chars: int | None = None) -> list[ParsedEvent]:
        """Leave the call that is open, if one is, as incomplete; with only so many characters of its arguments."""
        if self._place not in (_Place.HEADER, _Place.ARGUMENTS):
            return []
        header = "".join(self._header)
        named = name_of(header)
        # A header that the end of the text cut may go on: only a number behind the name proves the name whole.
        is_whole = self._place is _Place.ARGUMENTS or by is not None or named.index is not None
        broken = IncompleteCall(
            index=self._call.index if self._call else None,
            header=header,
            name=(named.name or None) if is_whole else None,
            arguments=self.arguments[:num_argument_chars],
            broken_in="header" if self._place is _Place.HEADER else "arguments",
            broken_by=by,
        )
        self._leave_call()
        return [broken]

    def finish(self) -> list[ParsedEvent]:
        """The text is over, with or without an end marker."""
        events = self.break_off(None)
        self._place = _Place.ENDED
        return events

    def _content(self, text: str) -> list[ParsedEvent]:
        if self._is_behind_marker:
            self._space.append(text)
            if text.isspace():
                return []
            text = "".join(self._space)
            self._is_behind_marker = False
        return [Text(text=text)]

    def _begin_arguments(self) -> list[ParsedEvent]:
        raw_id = "".join(self._header).strip()
        name = name_of(raw_id).name
        self._place = _Place.ARGUMENTS
        if not name:
            return []
        self._call = CallBegin(index=self._num_calls, id=raw_id, name=name)
        self._num_calls += 1
        return [self._call]

    def _outside_calls(self, marker: Marker) -> list[ParsedEvent]:
        if self._place is _Place.CONTENT:
            self._is_behind_marker, self._space = True, []
            if marker is Marker.CALL_BEGIN:
                self._place = _Place.HEADER
            elif marker in (Marker.IM_END, Marker.EOS):
                self._place = _Place.ENDED
        return []

    def _leave_call(self) -> None:
        self._place = _Place.CONTENT
        self._call = None
        self._header, self._arguments = [], []
        self._is_behind_marker, self._space = True, []
