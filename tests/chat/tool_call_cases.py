"""Answers as models write them, well and badly, and what a parser is to make of each.

A case is written once, as text between markers, and read in both ways: by ids, where a marker is a token, and by text,
where it is spelled. Where text alone cannot tell what ids tell, `by_text` has the other result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chogori.chat.tool_call_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    IncompleteCall,
    Marker,
    ParsedEvent,
    Text,
)

SB, SE = Marker.SECTION_BEGIN, Marker.SECTION_END
CB, AB, CE = Marker.CALL_BEGIN, Marker.ARGUMENT_BEGIN, Marker.CALL_END
IM, EOS = Marker.IM_END, Marker.EOS


@dataclass(frozen=True)
class Called:
    """A complete call."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Broke:
    """A call that broke off."""

    header: str
    name: str | None
    arguments: str
    broken_in: Literal["header", "arguments"]
    broken_by: Marker | None


Item = str | Called | Broke


@dataclass(frozen=True)
class Case:
    name: str
    pieces: Sequence[str | Marker]
    expected: Sequence[Item]
    by_text: Sequence[Item] | None = None
    """What text alone gives, where that differs."""

    @property
    def text(self) -> str:
        return spelled(self.pieces)


def spelled(pieces: Sequence[str | Marker]) -> str:
    """Pieces as one text, markers written out."""
    return "".join(piece.value if isinstance(piece, Marker) else piece for piece in pieces)


def summary_of(events: Sequence[ParsedEvent]) -> list[Item]:
    """Events put together, so that two ways to cut one answer compare equal; checks that they keep their order."""
    items: list[Item] = []
    num_begun = 0
    call: CallBegin | None = None
    arguments = ""
    for event in events:
        match event:
            case Text(text=text):
                assert text
                assert call is None, "text within a call"
                if items and isinstance(items[-1], str):
                    items[-1] += text
                else:
                    items.append(text)
            case CallBegin():
                assert call is None, "a call within a call"
                assert event.index == num_begun
                call, arguments = event, ""
                num_begun += 1
            case CallArguments(index=index, text=text):
                assert text
                assert call is not None
                assert index == call.index
                arguments += text
            case CallEnd(index=index):
                assert call is not None
                assert index == call.index
                items.append(Called(call.id, call.name, arguments))
                call = None
            case IncompleteCall():
                assert event.index == (call.index if call else None)
                assert call is None or arguments.startswith(event.arguments)
                items.append(Broke(event.header, event.name, event.arguments, event.broken_in, event.broken_by))
                call = None
    assert call is None, "a call that neither ended nor broke"
    return items


def _call(header: str, arguments: str = "{}") -> list[str | Marker]:
    return [CB, header, AB, arguments, CE]


CITY = '{"city": "Skardu"}'
ONE = [SB, *_call("functions.weather:0", CITY), SE]
WEATHER = Called("functions.weather:0", "weather", CITY)

CASES = (
    # ---- content and sections
    Case("nothing", [], []),
    Case("only text", ["Hello, K2."], ["Hello, K2."]),
    Case("one call", [*ONE, IM], [WEATHER]),
    Case("text before the section", ["I look it up.", *ONE, IM], ["I look it up.", WEATHER]),
    Case("text after the section", [*ONE, "Wait a moment.", IM], [WEATHER, "Wait a moment."]),
    Case(
        "text before, between and after two sections",
        ["a ", *ONE, " b\n", SB, *_call("functions.weather:1"), SE, "\nc", IM],
        ["a ", WEATHER, " b\n", Called("functions.weather:1", "weather", "{}"), "\nc"],
    ),
    Case(
        "text inside a section",
        [SB, "now: ", *_call("functions.f:0"), "and", SE],
        ["now: ", Called("functions.f:0", "f", "{}"), "and"],
    ),
    Case("an empty section", ["a", SB, SE, "b"], ["ab"]),
    Case(
        "three calls in a section",
        [SB, *_call("functions.a:0"), *_call("functions.b:1", CITY), *_call("functions.a:2"), SE],
        [Called("functions.a:0", "a", "{}"), Called("functions.b:1", "b", CITY), Called("functions.a:2", "a", "{}")],
    ),
    Case(
        "the same index twice",
        [*_call("functions.a:0"), *_call("functions.a:0", CITY)],
        [Called("functions.a:0", "a", "{}"), Called("functions.a:0", "a", CITY)],
    ),
    Case(
        "white space around every marker",
        [SB, "\n ", CB, " functions.f:0\n", AB, "{}", CE, "\n", *_call(" functions.g:1 "), " \n", SE, "\n", IM],
        [Called("functions.f:0", "f", "{}"), Called("functions.g:1", "g", "{}")],
    ),
    Case(
        "white space of content and arguments stays",
        ["  a\n\n", SB, *_call("f", '\n{ "x" : 1 }\n'), SE],
        ["  a\n\n", Called("f", "f", '\n{ "x" : 1 }\n')],
    ),
    Case("nothing is read behind the end", ["a", IM, "b", *ONE], ["a"]),
    Case("the other end token", ["a", EOS, "b"], ["a"]),
    # ---- section markers that are missing or too many
    Case("no section markers", [*_call("functions.weather:0", CITY), IM], [WEATHER]),
    Case(
        "text and a call without a section",
        ["I look. ", *_call("functions.weather:0", CITY), "Done."],
        ["I look. ", WEATHER, "Done."],
    ),
    Case("no section begin", [*_call("functions.weather:0", CITY), SE, IM], [WEATHER]),
    Case("no section end", [SB, *_call("functions.weather:0", CITY), IM], [WEATHER]),
    Case(
        "text behind a section that was not closed",
        [SB, *_call("functions.weather:0", CITY), "Then:"],
        [WEATHER, "Then:"],
    ),
    Case("section begin twice", [SB, *ONE, SE], [WEATHER]),
    Case("an orphan call end", ["a", CE, "b"], ["ab"]),
    Case("an orphan section end", ["a", SE, "b"], ["ab"]),
    Case("orphan ends behind a call", [*ONE, CE, SE, "b"], [WEATHER, "b"]),
    Case("call end twice", [SB, *_call("functions.weather:0", CITY), CE, SE], [WEATHER]),
    Case("an orphan argument begin", ["a", AB, "b"], ["ab"]),
    Case("argument begin twice", [CB, "functions.f:0", AB, AB, "{}", CE], [Called("functions.f:0", "f", "{}")]),
    # ---- ids and names
    Case("an id without index", _call("functions.get_weather"), [Called("functions.get_weather", "get_weather", "{}")]),
    Case("an id without prefix", _call("get_weather:3"), [Called("get_weather:3", "get_weather", "{}")]),
    Case("a bare name", _call("get_weather"), [Called("get_weather", "get_weather", "{}")]),
    Case(
        "dots and dashes",
        _call("functions.maps.geo-code.v2:12"),
        [Called("functions.maps.geo-code.v2:12", "maps.geo-code.v2", "{}")],
    ),
    Case("a name of digits", _call("functions.2048:0"), [Called("functions.2048:0", "2048", "{}")]),
    Case(
        "a built-in function",
        _call("functions.$web_search:0"),
        [Called("functions.$web_search:0", "$web_search", "{}")],
    ),
    Case("a name with a colon", _call("functions.mcp:find:7"), [Called("functions.mcp:find:7", "mcp:find", "{}")]),
    Case("a name in Chinese", _call("functions.查天气:0"), [Called("functions.查天气:0", "查天气", "{}")]),
    Case(
        "an index that goes on from the conversation", _call("functions.f:117"), [Called("functions.f:117", "f", "{}")]
    ),
    # ---- arguments
    Case(
        "nested braces",
        _call("f", '{"a": {"b": [{"c": {}}, []]}, "d": "}}{{]"}'),
        [Called("f", "f", '{"a": {"b": [{"c": {}}, []]}, "d": "}}{{]"}')],
    ),
    Case(
        "quotes and backslashes",
        _call("f", r'{"a": "\"\\", "b\\\"": "\\\\"}'),
        [Called("f", "f", r'{"a": "\"\\", "b\\\"": "\\\\"}')],
    ),
    Case(
        "a call end inside a string",
        [*_call("f", f'{{"a": "see {CE.value} there"}}'), "b"],
        [Called("f", "f", f'{{"a": "see {CE.value} there"}}'), "b"],
    ),
    Case(
        "a marker behind an escaped quote",
        _call("f", f'{{"a": "\\"{CE.value}\\""}}'),
        [Called("f", "f", f'{{"a": "\\"{CE.value}\\""}}')],
    ),
    Case(
        "a marker as a key",
        _call("f", f'{{"{SE.value}": "{IM.value}"}}'),
        [Called("f", "f", f'{{"{SE.value}": "{IM.value}"}}')],
    ),
    Case(
        "a whole call inside a string",
        [
            *_call(
                "f",
                f'{{"text": "{SB.value}{CB.value}functions.g:0{AB.value}{{}}{CE.value}{SE.value}"}}',
            ),
            *_call("h"),
        ],
        [
            Called("f", "f", f'{{"text": "{SB.value}{CB.value}functions.g:0{AB.value}{{}}{CE.value}{SE.value}"}}'),
            Called("h", "h", "{}"),
        ],
    ),
    Case(
        "half a marker inside a string and at its end",
        _call("f", '{"a": "<|tool_call_", "b": "<|"}'),
        [Called("f", "f", '{"a": "<|tool_call_", "b": "<|"}')],
    ),
    Case(
        "a number keeps its spelling",
        _call("f", '{"n": 1.0, "big": 12345678901234567890, "e": 1E5, "zero": -0}'),
        [Called("f", "f", '{"n": 1.0, "big": 12345678901234567890, "e": 1E5, "zero": -0}')],
    ),
    Case("a string that looks like a number", _call("f", '{"zip": "00501"}'), [Called("f", "f", '{"zip": "00501"}')]),
    Case(
        "every script",
        _call("f", '{"都市": "カトマンズ", "emoji": "🏔️👩‍👩‍👧", "मौसम": "é"}'),
        [Called("f", "f", '{"都市": "カトマンズ", "emoji": "🏔️👩‍👩‍👧", "मौसम": "é"}')],
    ),
    Case(
        "arguments that are no object",
        [*_call("f", "[1]"), *_call("g", '"x"'), *_call("h", "null")],
        [Called("f", "f", "[1]"), Called("g", "g", '"x"'), Called("h", "h", "null")],
    ),
    Case("empty arguments", _call("f", ""), [Called("f", "f", "")]),
    Case(
        "arguments that are not JSON",
        [*_call("f", "{'a': 1,}"), *_call("g")],
        [Called("f", "f", "{'a': 1,}"), Called("g", "g", "{}")],
    ),
    Case("line breaks inside a string", _call("f", '{"a": "x\ny"}'), [Called("f", "f", '{"a": "x\ny"}')]),
    # ---- calls that break
    Case("cut behind the section begin", ["a", SB], ["a"]),
    Case("cut behind the call begin", [SB, CB], [Broke("", None, "", "header", None)]),
    Case("cut within the name", [SB, CB, "functions.get_wea"], [Broke("functions.get_wea", None, "", "header", None)]),
    Case(
        "cut within the index",
        [SB, CB, "functions.get_weather:1"],
        [Broke("functions.get_weather:1", "get_weather", "", "header", None)],
    ),
    Case(
        "cut before the arguments", [SB, CB, "functions.f:0", AB], [Broke("functions.f:0", "f", "", "arguments", None)]
    ),
    Case(
        "cut within the arguments",
        [SB, CB, "functions.f:0", AB, '{"a": "b'],
        [Broke("functions.f:0", "f", '{"a": "b', "arguments", None)],
    ),
    Case(
        "cut behind the arguments",
        [SB, CB, "functions.f:0", AB, "{}"],
        [Broke("functions.f:0", "f", "{}", "arguments", None)],
    ),
    Case(
        "cut after a whole call",
        [*ONE[:-1], CB, "functions.f:1", AB, '{"a"'],
        [WEATHER, Broke("functions.f:1", "f", '{"a"', "arguments", None)],
    ),
    Case(
        "ended within the arguments",
        [SB, CB, "functions.f:0", AB, '{"a": ', IM, "b"],
        [Broke("functions.f:0", "f", '{"a": ', "arguments", IM)],
    ),
    Case(
        "a header without arguments",
        [SB, CB, "functions.f:0", CE, SE, "b"],
        [Broke("functions.f:0", "f", "", "header", CE), "b"],
    ),
    Case(
        "a header without arguments, then a call",
        [SB, CB, "functions.f", *_call("functions.g:1"), SE],
        [Broke("functions.f", "f", "", "header", CB), Called("functions.g:1", "g", "{}")],
    ),
    Case(
        "arguments in the header",
        [CB, 'functions.f:0{"a": 1}', CE, *_call("g")],
        [Broke('functions.f:0{"a": 1}', None, "", "header", CE), Called("g", "g", "{}")],
    ),
    Case(
        "a header that names nothing",
        [*_call("functions.:0", CITY), *_call("g")],
        [Broke("functions.:0", None, CITY, "arguments", CE), Called("g", "g", "{}")],
    ),
    Case("an empty header", [*_call("", CITY), "b"], [Broke("", None, CITY, "arguments", CE), "b"]),
    Case(
        "prose for a header",
        _call("I call functions.f:0", "{}"),
        [Broke("I call functions.f:0", None, "{}", "arguments", CE)],
    ),
    Case(
        "a broken call before a whole one",
        [SB, CB, "functions.f:0", AB, '{"a": ', *_call("functions.g:1"), SE],
        [Broke("functions.f:0", "f", '{"a": ', "arguments", CB), Called("functions.g:1", "g", "{}")],
    ),
    Case(
        "no call end",
        [SB, CB, "functions.f:0", AB, "{}", SE, "b"],
        [Broke("functions.f:0", "f", "{}", "arguments", SE), "b"],
    ),
    Case(
        "a section begin within arguments",
        [SB, CB, "f", AB, '{"a": 1', *ONE],
        [Broke("f", "f", '{"a": 1', "arguments", SB), WEATHER],
    ),
    # ---- where text alone must guess: a string that never closes
    Case(
        "an open string before a call with strings",
        [CB, "f", AB, '{"a": "b', *_call("functions.weather:1", CITY), SE],
        [Broke("f", "f", '{"a": "b', "arguments", CB), Called("functions.weather:1", "weather", CITY)],
    ),
    Case(
        "an open string before a call without strings",
        [CB, "f", AB, '{"a": "b', *_call("functions.g:1"), SE, IM],
        [Broke("f", "f", '{"a": "b', "arguments", CB), Called("functions.g:1", "g", "{}")],
    ),
    Case(
        "an open string in a call that ends, and two calls more",
        [SB, *_call("f", '{"a": "b'), *_call("g", CITY), *_call("h", '{"n": [1]}'), SE],
        [Called("f", "f", '{"a": "b'), Called("g", "g", CITY), Called("h", "h", '{"n": [1]}')],
        by_text=[Broke("f", "f", '{"a": "b', "arguments", CE), Called("g", "g", CITY), Called("h", "h", '{"n": [1]}')],
    ),
    Case(
        "an open string that quotes a marker first",
        [SB, *_call("f", f'{{"a": "say {CE.value} or'), *_call("g", CITY), SE],
        [Called("f", "f", f'{{"a": "say {CE.value} or'), Called("g", "g", CITY)],
        by_text=[Broke("f", "f", f'{{"a": "say {CE.value} or', "arguments", CE), Called("g", "g", CITY)],
    ),
    Case(
        "two open strings in a row",
        [CB, "f", AB, '{"a": "b', CB, "g", AB, '{"c": "d', *_call("h", CITY), SE],
        [
            Broke("f", "f", '{"a": "b', "arguments", CB),
            Broke("g", "g", '{"c": "d', "arguments", CB),
            Called("h", "h", CITY),
        ],
    ),
    Case(
        "an open string at the end", [SB, CB, "f", AB, '{"a": "b', IM], [Broke("f", "f", '{"a": "b', "arguments", IM)]
    ),
    Case(
        "a cut string that quotes a whole call",
        [CB, "f", AB, f'{{"text": "{CB.value}rm{AB.value}{{}}{CE.value}{SE.value} is how'],
        [Broke("f", "f", f'{{"text": "{CB.value}rm{AB.value}{{}}{CE.value}{SE.value} is how', "arguments", None)],
    ),
    Case(
        "a mistake in the JSON behind a string that quotes a call",
        [*_call("f", f'{{"text": "{CB.value}rm{AB.value}{{}}{CE.value}{SE.value}", oops}}'), *_call("g")],
        [
            Called("f", "f", f'{{"text": "{CB.value}rm{AB.value}{{}}{CE.value}{SE.value}", oops}}'),
            Called("g", "g", "{}"),
        ],
    ),
    # ---- marker text outside calls: ids know that it is data
    Case(
        "content that spells a marker", [f"K2 writes {CE.value}."], [f"K2 writes {CE.value}."], by_text=["K2 writes ."]
    ),
    Case(
        "content that spells an end",
        [f"It ends with {IM.value}, see?"],
        [f"It ends with {IM.value}, see?"],
        by_text=["It ends with "],
    ),
    Case("content that spells a role", ["a<|im_user|>b"], ["a<|im_user|>b"], by_text=["ab"]),
    Case("content that begins a marker", ["a <| b <|tool_call c [EO <|im_end"], ["a <| b <|tool_call c [EO <|im_end"]),
    Case("angle brackets and brackets", ["x<<y[[0]]<|z|>"], ["x<<y[[0]]<|z|>"]),
)
