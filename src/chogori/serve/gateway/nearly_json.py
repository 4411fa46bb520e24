"""JSON as models write it when they slip: Python's quotes and words, trailing commas, fences, line breaks in strings.

Only the spelling is put right. What is missing stays missing: a text that was cut off is not closed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from chogori.chat.messages import JSON
from chogori.chat.tool_call_events import Marker
from chogori.serve.tool_call_validity import read_json

_FENCE = re.compile(r"\s*```[a-zA-Z0-9]*\n(?P<body>.*?)\n?```\s*", re.DOTALL)
# A string that never ends is taken whole, so that none is looked at twice: what was cut off may be long.
_PIECE = re.compile(
    r"""(?P<double>"(?:[^"\\]|\\.)*+(?:"|\\?\Z))|(?P<single>'(?:[^'\\]|\\.)*+(?:'|\\?\Z))|(?P<comma>,(?=\s*[}\]]))"""
    r"""|(?P<word>\b(?:True|False|None)\b)|(?P<other>[^"',TFN]+|.)""",
    re.DOTALL,
)
_WORDS = {"True": "true", "False": "false", "None": "null"}
_SINGLE = re.compile(r"""\\'|"|\\.""", re.DOTALL)
# What may stand behind a whole value without meaning anything: brackets closed once too often, markers.
_NOTHING = re.compile(rf"(?:[\s}}\]`]|{'|'.join(re.escape(marker.value) for marker in Marker)})*")


def strictly_written(text: str) -> str:
    """The same value as strict JSON; text that is JSON comes back as it was.

    Raises ValueError where that cannot be, or would need a guess.
    """
    if _is_json(text):
        return text
    if fenced := _FENCE.fullmatch(text):
        text = fenced["body"]
    rewritten = "".join(_pieces(text))
    return _first_value(rewritten.strip())


def _is_json(text: str) -> bool:
    try:
        read_json(text)
    except ValueError:
        return False
    return True


def _pieces(text: str) -> Iterator[str]:
    for found in _PIECE.finditer(text):
        match found.lastgroup:
            case "double":
                yield _string(found[0])
            case "single" if len(found[0]) > 1 and found[0].endswith("'"):
                yield _string(f'"{_SINGLE.sub(_requoted, found[0][1:-1])}"')
            case "comma":
                pass
            case "word":
                yield _WORDS[found[0]]
            case _:
                yield found[0]


def _requoted(found: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(found[0], found[0])


def _string(quoted: str) -> str:
    """A string with its line breaks and tabs escaped; as it was where it has none."""
    if _is_json(quoted):
        return quoted
    return json.dumps(json.loads(quoted, strict=False), ensure_ascii=False)


def _first_value(text: str) -> str:
    """The text without what follows its first value, if that is nothing, or the same value again."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    first, rest = text[:end], text[end:]
    if not (_NOTHING.fullmatch(rest) or _says_again(value, rest)):
        raise ValueError(f"more text follows its end: {rest[:40]!r}")
    read_json(first)
    return first


def _says_again(value: JSON, rest: str) -> bool:
    try:
        return read_json(rest) == value
    except ValueError:
        return False
