"""How far a text that is still being written is JSON, and whether it stands inside a string."""

from __future__ import annotations

import re
from enum import Enum, auto

_STRING_BODY = re.compile(r'[^"\\]*')
_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")


class _Expect(Enum):
    """What comes next, white space aside."""

    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    SCALAR = auto()
    """More of a number, true, false or null."""
    COMMA_OR_END = auto()


class JsonPrefix:
    """Follows JSON text in any pieces, in linear time: its structure, not the spelling of numbers and escapes.

    Line breaks inside strings, which JSON forbids and models write, are let pass.
    """

    def __init__(self) -> None:
        self.in_string = False
        """Whether the text so far ends inside a string."""
        self.at_string_end = False
        """Whether it ends with the closing quote of a string, white space aside."""
        self.is_broken = False
        """Whether it stopped being JSON."""
        self.num_strings = 0
        """Strings begun."""
        self._expect = _Expect.VALUE
        self._open: list[str] = []
        self._is_key = False
        self._is_escaped = False

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is a whole value; a number may still go on."""
        is_value_over = self._expect in (_Expect.COMMA_OR_END, _Expect.SCALAR)
        return is_value_over and not self._open and not self.in_string and not self.is_broken

    def feed(self, text: str) -> int:
        """Go on. Returns how many characters of `text` continue the JSON: all, or those before the first that cannot.

        Once broken, it takes nothing.
        """
        position, end = 0, len(text)
        while position < end and not self.is_broken:
            if self.in_string:
                position = self._go_on_in_string(text, position)
                continue
            if self._expect is _Expect.SCALAR:
                position = _end_of(_SCALAR, text, position)
                if position < end:
                    self._expect = _Expect.COMMA_OR_END
                continue
            position = _end_of(_SPACE, text, position)
            if position < end:
                self.is_broken = not self._take(text[position])
                position += not self.is_broken
        return position

    def _go_on_in_string(self, text: str, position: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return position + 1
        position = _end_of(_STRING_BODY, text, position)
        if position == len(text):
            return position
        if text[position] == "\\":
            self._is_escaped = True
        else:
            self.in_string, self.at_string_end = False, True
            self._expect = _Expect.COLON if self._is_key else _Expect.COMMA_OR_END
        return position + 1

    def _take(self, character: str) -> bool:
        """Take a character outside strings; False where JSON has none such here."""
        expect = self._expect
        match character:
            case '"':
                if expect in (_Expect.COLON, _Expect.COMMA_OR_END):
                    return False
                self.in_string = True
                self.num_strings += 1
                self._is_key = expect in (_Expect.KEY, _Expect.KEY_OR_END)
            case "{" | "[":
                if expect not in (_Expect.VALUE, _Expect.VALUE_OR_END):
                    return False
                self._open.append(character)
                self._expect = _Expect.KEY_OR_END if character == "{" else _Expect.VALUE_OR_END
            case "}" | "]":
                begin, empty = ("{", _Expect.KEY_OR_END) if character == "}" else ("[", _Expect.VALUE_OR_END)
                if expect not in (empty, _Expect.COMMA_OR_END) or not self._open or self._open.pop() != begin:
                    return False
                self._expect = _Expect.COMMA_OR_END
            case ":":
                if expect is not _Expect.COLON:
                    return False
                self._expect = _Expect.VALUE
            case ",":
                if expect is not _Expect.COMMA_OR_END or not self._open:
                    return False
                self._expect = _Expect.KEY if self._open[-1] == "{" else _Expect.VALUE
            case _:
                if expect not in (_Expect.VALUE, _Expect.VALUE_OR_END) or not _SCALAR.fullmatch(character):
                    return False
                self._expect = _Expect.SCALAR
        self.at_string_end = False
        return True


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    assert found is not None, "these patterns match the empty text"
    return found.end()
