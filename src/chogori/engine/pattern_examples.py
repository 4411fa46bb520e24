r"""Short texts that satisfy a schema's patterns: with their tails a string is ended that a pattern still holds open.

A grammar tells which byte may come next, never how far off the end is: behind `report.p`, a pattern such as \.pdf$
allows every character, and only one of them helps. Examples are proposals, for whoever uses them to check: syntax that
is unknown here costs a slower search, never a wrong answer. Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, cast

MAX_VARIANTS = 8
"""Examples of one pattern: the n-th takes the n-th of every group's alternatives."""
MAX_EXAMPLE_CHARS = 256
MAX_TAILS = 512
_MAX_DEPTH = 50
"""Groups within groups; a pattern with more has no example."""

_FORMATS = {"email": "a@a.a", "idn-email": "a@a.a", "uri": "a:a", "duration": "PT1S"}
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
    "D": lambda char: not char.isdecimal(),
    "W": lambda char: not (char.isalnum() or char == "_"),
    "S": lambda char: not char.isspace(),
}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_PREFERRED = "a0A -_./:@" + "".join(map(chr, range(0x21, 0x7F)))


class _Unknown(Exception):
    """Syntax of which no example is made."""


def pattern_tails(schema: Mapping[str, Any]) -> list[bytes]:
    """Ends of examples of all patterns and formats in `schema`, shortest first.

    As JSON writes them, the closing quote included.
    """
    texts = {_FORMATS[name] for name in _values(schema, "format") if name in _FORMATS}
    for pattern in _patterns(schema):
        texts.update(_examples(pattern))
    tails = {
        json.dumps(text[start:], ensure_ascii=False).encode(errors="surrogatepass")[1:]
        for text in texts
        for start in range(len(text) + 1)
    }
    return sorted(tails, key=lambda tail: (len(tail), tail))[:MAX_TAILS]


def _patterns(schema: Any) -> set[str]:
    keys = [key for named in _mappings(schema, "patternProperties") for key in named]
    return {*_values(schema, "pattern"), *keys}


def _values(schema: Any, key: str) -> Iterator[str]:
    for fields in _all_mappings(schema):
        if isinstance(value := fields.get(key), str):
            yield value


def _mappings(schema: Any, key: str) -> Iterator[Mapping[str, Any]]:
    for fields in _all_mappings(schema):
        if isinstance(value := fields.get(key), Mapping):
            yield cast(Mapping[str, Any], value)


def _all_mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield (fields := cast(Mapping[str, Any], value))
        for inner in fields.values():
            yield from _all_mappings(inner)
    elif isinstance(value, list | tuple):
        for inner in cast(list[Any], value):
            yield from _all_mappings(inner)


def _examples(pattern: str) -> list[str]:
    texts: dict[str, None] = {}
    for variant, takes_optional in product(range(MAX_VARIANTS), (False, True)):
        try:
            texts[_Reader(pattern, variant, takes_optional=takes_optional).read()] = None
        except _Unknown:
            return []
    return list(texts)


class _Reader:
    """Reads a pattern and writes one text for it. `takes_optional`: what may be left out is there once."""

    def __init__(self, pattern: str, variant: int, *, takes_optional: bool) -> None:
        self._pattern, self._variant, self._takes_optional = pattern, variant, takes_optional
        self._at = 0

    def read(self) -> str:
        """The text."""
        text = self._alternatives(0)
        if self._at < len(self._pattern) or len(text) > MAX_EXAMPLE_CHARS:
            raise _Unknown
        return text

    def _next(self) -> str:
        if self._at == len(self._pattern):
            raise _Unknown
        self._at += 1
        return self._pattern[self._at - 1]

    def _takes(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _until(self, end: str) -> str:
        stop = self._pattern.find(end, self._at)
        if stop < 0:
            raise _Unknown
        text, self._at = self._pattern[self._at : stop], stop + len(end)
        return text

    def _alternatives(self, depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise _Unknown
        texts = [self._sequence(depth)]
        while self._takes("|"):
            texts.append(self._sequence(depth))
        return texts[min(self._variant, len(texts) - 1)]

    def _sequence(self, depth: int) -> str:
        text = ""
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            one = self._one(depth)
            text += one * self._count()
            if len(text) > MAX_EXAMPLE_CHARS:
                raise _Unknown
        return text

    def _one(self, depth: int) -> str:
        match char := self._next():
            case "^" | "$":
                return ""
            case ".":
                return "a"
            case "(":
                return self._group(depth)
            case "[":
                return self._class()
            case "\\":
                one = self._escape()
                return one if isinstance(one, str) else self._any_of(one)
            case _:
                return char

    def _group(self, depth: int) -> str:
        if self._takes("?P<") or self._takes("?<"):
            self._until(">")
        elif self._takes("?"):
            char = self._next()
            while char.isalpha() or char == "-":  # flags, such as i
                char = self._next()
            if char == ")":
                return ""
            if char != ":":
                raise _Unknown
        text = self._alternatives(depth + 1)
        if not self._takes(")"):
            raise _Unknown
        return text

    def _count(self) -> int:
        fewest = 1
        if self._takes("*") or self._takes("?"):
            fewest = 0
        elif self._takes("{"):
            digits = self._until("}").split(",")[0]
            if not digits.isdecimal():
                raise _Unknown
            fewest = min(int(digits), MAX_EXAMPLE_CHARS + 1)
        elif not self._takes("+"):
            return 1
        _ = self._takes("?") or self._takes("+")
        return max(fewest, 1) if self._takes_optional else fewest

    def _escape(self) -> str | Callable[[str], bool]:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in "bBAzZ":
            return ""
        if char in "pP":
            if self._takes("{"):
                self._until("}")
            return "a"
        if char in "xu":
            digits = (
                self._until("}") if self._takes("{") else "".join(self._next() for _ in range(2 if char == "x" else 4))
            )
            try:
                return chr(int(digits, 16))
            except ValueError:
                raise _Unknown from None
        return _CONTROLS.get(char, char)

    def _class(self) -> str:
        is_negated = self._takes("^")
        tests: list[Callable[[str], bool]] = []
        wanted = ""
        while not self._takes("]") or not tests:
            low = self._class_item()
            if isinstance(low, str) and self._takes("-"):
                if self._takes("]"):
                    tests += [low.__eq__, "-".__eq__]
                    wanted += low
                    break
                high = self._class_item()
                if not isinstance(high, str):
                    raise _Unknown
                tests.append(lambda char, low=low, high=high: low <= char <= high)
                wanted += low
            elif isinstance(low, str):
                tests.append(low.__eq__)
                wanted += low
            else:
                tests.append(low)
        return self._any_of(lambda char: any(test(char) for test in tests) != is_negated, wanted)

    def _class_item(self) -> str | Callable[[str], bool]:
        char = self._next()
        return self._escape() if char == "\\" else char

    def _any_of(self, test: Callable[[str], bool], wanted: str = "") -> str:
        for char in _PREFERRED + wanted:
            if test(char):
                return char
        raise _Unknown
