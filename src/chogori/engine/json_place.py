"""Where a JSON text that is being written stands, as far as its end and its readers are concerned. Loads no torch."""

from __future__ import annotations

MAX_DEPTH = 64
"""Arrays and objects within each other that common readers take: System.Text.Json 64, serde_json 128, Python's json
about 990."""
MAX_DIGITS = 400
"""Digits in a row of a number: those of the largest double and some more; Python's int takes 4300."""

_DIGITS = frozenset(b"0123456789")


class JsonPlace:
    """Follows a JSON text byte by byte. `inside`: whether it stands in a string."""

    __slots__ = ("_depth", "_escaped", "_num_digits", "inside")

    def __init__(self) -> None:
        self.inside = False
        self._escaped = False
        self._depth = self._num_digits = 0

    def copy(self) -> JsonPlace:
        """An independent follower at the same place."""
        place = JsonPlace()
        place.inside, place._escaped = self.inside, self._escaped
        place._depth, place._num_digits = self._depth, self._num_digits
        return place

    @property
    def is_readable(self) -> bool:
        """Whether common readers take what is open now: not nested too deep, no number too long."""
        return self._depth <= MAX_DEPTH and self._num_digits <= MAX_DIGITS

    def feed(self, data: bytes) -> None:
        """Read on."""
        for value in data:
            if self._escaped:
                self._escaped = False
            elif value == 0x22:
                self.inside = not self.inside
                self._num_digits = 0
            elif self.inside:
                self._escaped = value == 0x5C
            elif value in _DIGITS:
                self._num_digits += 1
            else:
                self._num_digits = 0
                self._depth += (value in b"[{") - (value in b"]}")
