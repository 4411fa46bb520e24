"""Texts that end an answer, looked for in a stream: nothing that may be the beginning of one is let out early."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes text on until one of `stops` appears in it.

    `found` is the stop text that ended the answer; it and what follows it are never passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held: str = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that is safe to pass on, given that `text` comes next."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        # The one that is complete first, so that it does not matter in which pieces the text came.
        ends = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            _, place, self.found = min(ends)
            self._held: str = ""
            return text[:place]
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back: the stream ended within what might have become a stop text."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop text."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
