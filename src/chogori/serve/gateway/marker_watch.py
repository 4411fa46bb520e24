"""Watching content for the first marker of a tool call that an engine left in it."""

from __future__ import annotations

import re

from chogori.chat.tool_call_events import Marker

_MARKERS = tuple(marker.value for marker in Marker if marker.value.startswith("<|tool_call"))
_MARKER = re.compile("|".join(map(re.escape, _MARKERS)))
_BEGINNINGS = frozenset(marker[:length] for marker in _MARKERS for length in range(1, len(marker)))
_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "「": "」"}


class MarkerWatch:
    """Lets content pass up to the first marker of a tool call, and holds back only what may be the beginning of one.

    A marker between quotation marks or backticks is spoken about, and passes; so does one behind an opening mark with
    which the content ends. Other special tokens, such as `[EOS]`, do
    too: words that someone may well write.
    """

    def __init__(self) -> None:
        self._held = ""
        self._before = ""
        """The last character that has passed."""
        self.found: str | None = None
        """From the first marker on, what had come when it was found; None while there is none."""

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        return len(self._held)

    def feed(self, text: str) -> str:
        """Go on, as long as nothing was found. Returns what may pass."""
        text = self._held + text
        self._held = ""
        position = 0
        while marker := _MARKER.search(text, position):
            before = text[marker.start() - 1] if marker.start() else self._before
            closing = _QUOTES.get(before)
            if closing is not None and marker.end() == len(text):
                return self._passed(text, marker.start())  # what follows says whether it is quoted
            if closing is None or text[marker.end()] != closing:
                self.found = text[marker.start() :]
                return self._passed(text[: marker.start()], marker.start())
            position = marker.end()
        start = text.rfind("<", position)
        is_beginning = start >= 0 and text[start:] in _BEGINNINGS
        return self._passed(text, start if is_beginning else len(text))

    def finish(self) -> str:
        """The content is over: what was held back. A marker there is none of a call that could be read."""
        held, self._held = self._held, ""
        return held

    def _passed(self, text: str, end: int) -> str:
        passed, self._held = text[:end], text[end:]
        self._before = passed[-1:] or self._before
        return passed
