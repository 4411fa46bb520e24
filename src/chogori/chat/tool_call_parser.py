"""Streaming parsers of K2's output: over token ids where they are known, over text where they are not.

By ids only special tokens are structure; marker text in content or arguments is data. In text, markers are structure
save inside the strings of a call's arguments. In whatever pieces an answer comes, what is reported adds up to the same.

    parser = TextParser()
    for piece in pieces:
        for event in parser.feed(piece): ...
    for event in parser.finish(): ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from chogori.chat.json_prefix import JsonPrefix
from chogori.chat.special_tokens import K2_OFFSETS
from chogori.chat.token_text import TokenText
from chogori.chat.tool_call_events import NAME_PATTERN, Marker, ParsedEvent
from chogori.chat.tool_call_state import ToolCallState

if TYPE_CHECKING:  # the tokenizer loads two native libraries, which a parser of text has no use for
    from chogori.chat.tokenizer import Tokenizer


class TokenParser:
    """Parses token ids. Special tokens without a meaning inside an answer, such as `<|im_user|>`, have no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special_tokens
        self._markers = {special[marker.value]: marker for marker in Marker if marker.value in special}
        self._special_ids = frozenset(special.values())
        self._text = TokenText(tokenizer)
        self._state = ToolCallState()

    @property
    def ended(self) -> bool:
        """Whether an end token came; what is fed after it is not read."""
        return self._state.ended

    def feed(self, ids: Sequence[int]) -> list[ParsedEvent]:
        """Go on with more tokens. Raises TokenizerError on an id outside the vocabulary."""
        events: list[ParsedEvent] = []
        for is_special, run in groupby(ids, self._special_ids.__contains__):
            if not is_special:
                events += self._state.text(self._text.feed(list(run)))
                continue
            events += self._state.text(self._text.finish())
            for token_id in run:
                if marker := self._markers.get(token_id):
                    events += self._state.marker(marker)
        return events

    def finish(self) -> list[ParsedEvent]:
        """What was still open when the tokens ended."""
        return self._state.text(self._text.finish()) + self._state.finish()


# In text, "[PAD]" and its like are words that someone may well write, and no server lets them through; "[EOS]" is
# listed because servers do, at the end. Role markers mean nothing inside an answer and are left out of it.
_TEXT_MARKERS = (*(marker.value for marker in Marker), *(name for name in K2_OFFSETS if name.startswith("<|im_")))
_MARKER = re.compile("|".join(re.escape(name) for name in dict.fromkeys(_TEXT_MARKERS)))
_MARKER_BEGINNINGS = frozenset(name[:length] for name in _TEXT_MARKERS for length in range(1, len(name)))
_MEANINGS = {marker.value: marker for marker in Marker}


def _any_of(*markers: Marker) -> str:
    return "(?:" + "|".join(re.escape(marker.value) for marker in markers) + ")"


# How real ends and beginnings of calls look, as against a marker that a string merely mentions.
_REAL_STRUCTURE = re.compile(
    rf"{_any_of(Marker.CALL_END, Marker.SECTION_END)}"
    rf"\s*(?:{_any_of(*(marker for marker in Marker if marker is not Marker.ARGUMENT_BEGIN))}|\Z)"
    rf"|{_any_of(Marker.CALL_BEGIN)}\s*{NAME_PATTERN}\s*{_any_of(Marker.ARGUMENT_BEGIN)}"
    rf"|{_any_of(Marker.IM_END)}\s*\Z"
)
_ENDS = tuple(marker.value for marker in (Marker.CALL_END, Marker.SECTION_END, Marker.IM_END, Marker.EOS))


class TextParser:
    """Parses text. Holds back nothing but what may be the beginning of a marker, and names until they are whole.

    A marker inside a string of a call's arguments is taken for data at once. If the string then turns out never to
    have closed (what follows its end is not JSON, or the text ends in a marker) and real structure stands in it, the
    call broke there: it is reported as incomplete, and what it had swallowed is read anew. Nothing is read more than
    twice.
    """

    def __init__(self) -> None:
        self._state = ToolCallState()
        self._held = ""
        self._json = JsonPrefix()
        self._num_argument_chars = 0
        self._quoted_from = 0
        """Where in the arguments the first marker stands that was taken for data."""
        self._quoted_in = 0
        """In which of the arguments' strings, counted from 1; 0 for none."""

    @property
    def ended(self) -> bool:
        """Whether an end marker came; what is fed after it is not read."""
        return self._state.ended

    @property
    def num_held(self) -> int:
        """Characters that are held back, since they may begin a marker."""
        return len(self._held)

    def feed(self, text: str) -> list[ParsedEvent]:
        """Go on with more text."""
        text = self._held + text
        whole = len(text) - _num_chars_of_partial_marker(text)
        self._held = text[whole:]
        return self._read(text[:whole], trusts_strings=True)

    def finish(self) -> list[ParsedEvent]:
        """What was still held or open when the text ended."""
        events = self._read_plain(self._held)
        self._held = ""
        # Cut in the middle, a text may have quoted a whole call; only one that ends as answers do has made it.
        if self._state.in_arguments and self._state.arguments.rstrip().endswith(_ENDS):
            events += self._read_open_string_anew() or []
        return events + self._state.finish()

    def _read(self, text: str, *, trusts_strings: bool) -> list[ParsedEvent]:
        """Read text that ends in no partial marker."""
        events: list[ParsedEvent] = []
        position = 0
        for found in _MARKER.finditer(text):
            events += self._read_plain(text[position : found.start()])
            if trusts_strings and self._state.in_arguments and self._json.in_string:
                if self._quoted_in != self._json.num_strings:
                    self._quoted_in, self._quoted_from = self._json.num_strings, self._num_argument_chars
                events += self._read_plain(found[0])
            else:
                events += self._read_marker(found[0])
            position = found.end()
        return events + self._read_plain(text[position:])

    def _read_marker(self, name: str) -> list[ParsedEvent]:
        meaning = _MEANINGS.get(name)
        if meaning is None:
            return []
        was_in_arguments = self._state.in_arguments
        events = self._state.marker(meaning)
        if self._state.in_arguments and not was_in_arguments:
            self._json = JsonPrefix()
            self._num_argument_chars = self._quoted_from = self._quoted_in = 0
        return events

    def _read_plain(self, text: str) -> list[ParsedEvent]:
        """Read text without structure."""
        if not self._state.in_arguments or self._json.is_broken:
            return self._state.text(text)
        num_taken = self._json.feed(text)
        events = self._read_arguments(text[:num_taken])
        if num_taken < len(text):
            anew = self._read_open_string_anew(text[num_taken])
            if anew is None:  # not JSON, for whatever other reason: no string is trusted in what follows
                return events + self._read_arguments(text[num_taken:])
            events += anew + self._read_plain(text[num_taken + 1 :])
        return events

    def _read_arguments(self, text: str) -> list[ParsedEvent]:
        self._num_argument_chars += len(text)
        return self._state.text(text)

    def _read_open_string_anew(self, following: str = "") -> list[ParsedEvent] | None:
        """Undo the markers taken for data in a string that should have closed before; None if they were data."""
        is_last_string = self._json.in_string or self._json.at_string_end
        if not is_last_string or self._quoted_in != self._json.num_strings:
            return None
        suspect = self._state.arguments[self._quoted_from :] + following
        real = _REAL_STRUCTURE.search(suspect)
        if real is None:
            return None
        by = _MARKER.match(suspect, real.start())
        assert by is not None, "real structure begins with a marker"
        broken = self._state.break_off(_MEANINGS[by[0]], num_argument_chars=self._quoted_from + real.start())
        return broken + self._read(suspect[real.start() :], trusts_strings=False)


def _num_chars_of_partial_marker(text: str) -> int:
    """Length of the end of a text that a marker may begin with. Markers hold `<` and `[` at their beginning only."""
    start = max(text.rfind("<"), text.rfind("["))
    return len(text) - start if start >= 0 and text[start:] in _MARKER_BEGINNINGS else 0
