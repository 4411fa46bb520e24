"""Reader of server-sent events (WHATWG HTML, §9.2.6), in whatever pieces their bytes come."""

from __future__ import annotations

from dataclasses import dataclass

from chogori.errors import BackendError

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""A longer event is refused: no answer of a model is, and a server gone wrong may never end its line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSentEvent:
    """One event."""

    data: str
    """Its data lines, joined by line feeds."""
    event: str = "message"
    """Its type."""


class EventReader:
    """Takes bytes, gives whole events. Lines end in LF, CR or CRLF; an event that the stream cuts off never comes."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[str] = []
        self._event = ""
        self._num_bytes = 0
        self._is_behind_cr = False
        self._is_at_start = True

    def feed(self, received: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete. Raises BackendError when an event exceeds MAX_EVENT_BYTES."""
        if self._is_behind_cr and received:
            received = received.removeprefix(b"\n")
            self._is_behind_cr = False
        events: list[ServerSentEvent] = []
        for piece in received.splitlines(keepends=True):
            self._num_bytes += len(piece)
            if self._num_bytes > MAX_EVENT_BYTES:
                raise BackendError(f"the server sent an event of more than {MAX_EVENT_BYTES} bytes")
            self._line.append(piece)
            if piece.endswith((b"\n", b"\r")):
                line = b"".join(self._line).rstrip(b"\r\n")
                self._line = []
                if event := self._read_line(line):
                    events.append(event)
        self._is_behind_cr = self._is_behind_cr or received.endswith(b"\r")
        return events

    def _read_line(self, line: bytes) -> ServerSentEvent | None:
        if self._is_at_start:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._is_at_start = False
        if not line:
            return self._dispatch()
        name, _, value = line.decode("utf-8", errors="replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case _:  # a comment, whose name is empty, or a field of no use to one answer
                pass
        if not self._data:
            self._num_bytes = 0
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event, self._num_bytes = [], "", 0
        return ServerSentEvent(data="\n".join(data), event=event or "message") if data else None
