"""Answers as servers break them, in every known way, by name: each takes what a model meant and writes it wrongly."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jsonschema

from chogori.chat.tool_call_events import Marker
from tests.serve.gateway.wires import Call, Meant, Wire

SB, SE = Marker.SECTION_BEGIN.value, Marker.SECTION_END.value
CB, AB, CE = Marker.CALL_BEGIN.value, Marker.ARGUMENT_BEGIN.value, Marker.CALL_END.value
FOREIGN_ID = "call_0"
"""Not K2's, but an id: the first call may keep it."""
NOTE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "unit": {"enum": ["metric", "imperial"]}, "days": {"type": "integer"}},
    "required": ["text"],
    "additionalProperties": False,
}


Breaker = Callable[[random.Random, Meant], "Wire | None"]
"""None where what was meant cannot be broken in this way."""


def sound(meant: Meant) -> Wire:
    """As it ought to be."""
    calls = tuple(_told(meant, i) for i in range(len(meant.calls)))
    return Wire(content=meant.content, calls=calls, finish="tool_calls" if calls else "stop")


def _told(meant: Meant, index: int, **changes: Any) -> dict[str, Any]:
    call = meant.calls[index]
    return {"id": meant.id_of(index), "name": call.name, "arguments": call.arguments} | changes


def _with_first(meant: Meant, **changes: Any) -> Wire:
    wire = sound(meant)
    return replace(wire, calls=(_told(meant, 0, **changes), *wire.calls[1:]))


def _raw(meant: Meant, *, ids: Sequence[str] | None = None, section: bool = True) -> str:
    calls = "".join(
        f"{CB}{ids[i] if ids else meant.id_of(i)}{AB}{call.arguments}{CE}" for i, call in enumerate(meant.calls)
    )
    return f"{SB}{calls}{SE}" if section else calls


def _invalid(call: Call, value: Any) -> bool:
    return not jsonschema.Draft202012Validator(call.schema).is_valid(value)


def raw_markers(random_: random.Random, meant: Meant) -> Wire:
    return Wire(content=meant.content + _raw(meant), finish=random_.choice(["stop", "tool_calls"]))


def call_end_in_string(random_: random.Random, meant: Meant) -> Wire:
    text = random_.choice([f"ends with {CE}", f"{CE}{SE} in the middle", f"{CB}functions.note:0{AB}{{}}{CE}"])
    arguments = json.dumps({"text": text + ' "quoted"', "days": 2})
    call = Call(name="note", arguments=arguments, schema=NOTE_SCHEMA)
    meant = replace(meant, calls=(call, *meant.calls[1:]))
    if random_.random() < 0.5:
        return Wire(content=meant.content + _raw(meant), expected=meant)
    cut = arguments[: arguments.index(CE)]  # as a regular expression that stops at the marker leaves it
    return replace(_with_first(meant, arguments=cut), expected=meant)


def no_section(random_: random.Random, meant: Meant) -> Wire:
    return Wire(content=meant.content + _raw(meant, section=False))


def truncated_header(random_: random.Random, meant: Meant) -> Wire:
    meant = replace(meant, calls=meant.calls[:1])
    whole = f"{SB}{CB}{meant.id_of(0)}"
    least = len(f"{SB}{CB}functions.") + 1
    cut = whole[: random_.randint(least, len(whole))]
    return Wire(content=meant.content + cut, finish=random_.choice(["length", "stop"]), expected=meant)


def bare_ids(random_: random.Random, meant: Meant) -> Wire:
    ids = [
        random_.choice([call.name, f"{call.name}:{i}", f"functions.{call.name}", f" functions.{call.name}:{i}\n"])
        for i, call in enumerate(meant.calls)
    ]
    return Wire(content=meant.content + _raw(meant, ids=ids))


def other_names(random_: random.Random, meant: Meant) -> Wire:
    name = meant.calls[0].name
    return _with_first(
        meant, name=random_.choice([f"functions.{name}", f"functions.{name}:0", f"{name}:0", name.upper(), f" {name} "])
    )


def no_name(random_: random.Random, meant: Meant) -> Wire:
    return _with_first(meant, name=random_.choice(["", None]))


def swallowed_next(random_: random.Random, meant: Meant) -> Wire | None:
    if len(meant.calls) < 2:
        return None
    end = random_.choice([CE, ""])
    first, *rest = meant.calls
    swallowed = "".join(f"{end}{CB}{meant.id_of(i)}{AB}{call.arguments}" for i, call in enumerate(rest, 1))
    return Wire(
        content=meant.content,
        calls=(_told(meant, 0, arguments=first.arguments + swallowed + random_.choice([CE + SE, ""])),),
        finish="tool_calls",
    )


def orphan_end(random_: random.Random, meant: Meant) -> Wire:
    orphan = random_.choice([CE, SE, CE + SE, SB])
    if random_.random() < 0.5:
        return replace(sound(meant), content=meant.content + orphan)
    return _with_first(meant, arguments=meant.calls[0].arguments + random_.choice([CE, CE + SE, SE]))


def _mutated(random_: random.Random, call: Call, change: Callable[[Any, random.Random], Any]) -> str | None:
    """The arguments with a change somewhere that makes them invalid."""
    places = list(_places(call.value, ()))
    random_.shuffle(places)
    for path in places:
        value = copy.deepcopy(call.value)
        changed = _changed(value, path, change, random_)
        if changed is not None and _invalid(call, changed):
            return json.dumps(changed, ensure_ascii=False)
    return None


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _places(item, (*path, index))


def _changed(value: Any, path: tuple[Any, ...], change: Any, random_: random.Random) -> Any:
    if not path:
        return change(value, random_)
    place = value
    for step in path[:-1]:
        place = place[step]
    new = change(place[path[-1]], random_)
    if new is None:
        return None
    place[path[-1]] = new
    return value


def _mutating(change: Callable[[Any, random.Random], Any]) -> Breaker:
    def breaker(random_: random.Random, meant: Meant) -> Wire | None:
        arguments = _mutated(random_, meant.calls[0], change)
        return None if arguments is None else _with_first(meant, arguments=arguments)

    return breaker


def _as_string(value: Any, _: random.Random) -> Any:
    return json.dumps(value) if isinstance(value, int | float | bool) else None


def _encoded(value: Any, _: random.Random) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else None


def _less(value: Any, random_: random.Random) -> Any:
    if not isinstance(value, dict) or not value:
        return None
    return {key: item for key, item in value.items() if key != random_.choice(list(value))}


def _more(value: Any, _: random.Random) -> Any:
    return {**value, "invented_by_the_model": "x"} if isinstance(value, dict) else None


def _other_word(value: Any, _: random.Random) -> Any:
    return f"{value} or so" if isinstance(value, str) else None


def double_encoded(random_: random.Random, meant: Meant) -> Wire:
    arguments = meant.calls[0].arguments
    for _ in range(random_.randint(1, 2)):
        arguments = json.dumps(arguments)
    return _with_first(meant, arguments=arguments)


def wrapped(random_: random.Random, meant: Meant) -> Wire | None:
    call = meant.calls[0]
    value = random_.choice([{"name": call.name, "arguments": call.value}, {"arguments": call.arguments}])
    return _with_first(meant, arguments=json.dumps(value)) if _invalid(call, value) else None


def python_dict(random_: random.Random, meant: Meant) -> Wire:
    return _with_first(meant, arguments=repr(meant.calls[0].value))


def trailing_comma(random_: random.Random, meant: Meant) -> Wire | None:
    arguments = meant.calls[0].arguments
    return _with_first(meant, arguments=arguments.rstrip()[:-1] + ",}") if meant.calls[0].value else None


def fenced(random_: random.Random, meant: Meant) -> Wire:
    return _with_first(meant, arguments=f"```json\n{meant.calls[0].arguments}\n```")


def line_breaks_in_strings(random_: random.Random, meant: Meant) -> Wire:
    call = Call(name="note", arguments='{"text": "two\\nlines\\tand a tab"}', schema=NOTE_SCHEMA)
    meant = replace(meant, calls=(call, *meant.calls[1:]))
    arguments = call.arguments.replace("\\n", "\n").replace("\\t", "\t")
    return replace(_with_first(meant, arguments=arguments), expected=meant)


def said_twice(random_: random.Random, meant: Meant) -> Wire:
    arguments = meant.calls[0].arguments
    return _with_first(meant, arguments=arguments + random_.choice([arguments, "}", "\n"]))


def empty_arguments(random_: random.Random, meant: Meant) -> Wire | None:
    call = meant.calls[0]
    return _with_first(meant, arguments="") if _invalid(call, {}) or call.value == {} else None


def null_arguments(random_: random.Random, meant: Meant) -> Wire | None:
    call = meant.calls[0]
    said = random_.choice([None, "null"])
    return _with_first(meant, arguments=said) if _invalid(call, {}) or call.value == {} else None


def truncated(random_: random.Random, meant: Meant) -> Wire:
    last = len(meant.calls) - 1
    arguments = meant.calls[last].arguments
    cut = arguments[: random_.randint(0, len(arguments) - 1)]
    wire = sound(meant)
    return replace(wire, calls=(*wire.calls[:-1], _told(meant, last, arguments=cut)), finish="length")


def truncated_raw(random_: random.Random, meant: Meant) -> Wire:
    meant = replace(meant, calls=meant.calls[:1])
    raw = f"{SB}{CB}{meant.id_of(0)}{AB}{meant.calls[0].arguments}"
    least = len(raw) - len(meant.calls[0].arguments)
    cut = raw[: random_.randint(least, len(raw) - 1)]
    return Wire(content=meant.content + cut, finish=random_.choice(["length", "stop"]), expected=meant)


def wrong_finish(random_: random.Random, meant: Meant) -> Wire:
    return replace(sound(meant), finish=random_.choice(["stop", "function_call", "eos"]))


def undeclared(random_: random.Random, meant: Meant) -> Wire:
    return _with_first(meant, name="invented_tool", id="functions.invented_tool:0")


def one_index(random_: random.Random, meant: Meant) -> Wire:
    return replace(sound(meant), indices=tuple(0 for _ in meant.calls))


def other_indices(random_: random.Random, meant: Meant) -> Wire:
    return replace(sound(meant), indices=tuple(3 - i for i in range(len(meant.calls))))


def duplicate_ids(random_: random.Random, meant: Meant) -> Wire:
    same = random_.choice([FOREIGN_ID, meant.id_of(0), ""])
    return replace(sound(meant), calls=tuple(_told(meant, i, id=same) for i in range(len(meant.calls))))


def whole_in_one_chunk(random_: random.Random, meant: Meant) -> Wire:
    return replace(sound(meant), pieces="whole")


def one_character_chunks(random_: random.Random, meant: Meant) -> Wire:
    wire = sound(meant) if random_.random() < 0.5 else Wire(content=meant.content + _raw(meant))
    return replace(wire, pieces="characters")


def text_after_section(random_: random.Random, meant: Meant) -> Wire:
    expected = replace(meant, content=meant.content + " So far.")
    if random_.random() < 0.5:
        return Wire(content=meant.content + _raw(meant) + " So far.", expected=expected)
    return replace(sound(meant), after=" So far.", expected=expected)


def no_argument_marker(random_: random.Random, meant: Meant) -> Wire:
    calls = "".join(f"{CB}{meant.id_of(i)}{call.arguments}{CE}" for i, call in enumerate(meant.calls))
    return Wire(content=f"{meant.content}{SB}{calls}{SE}")


def lost_call(random_: random.Random, meant: Meant) -> Wire:
    return Wire(finish="tool_calls", expected=replace(meant, content="", calls=meant.calls[:1]))


BREAKERS: dict[str, Breaker] = {
    "raw_markers": raw_markers,
    "call_end_in_string": call_end_in_string,
    "no_section": no_section,
    "truncated_header": truncated_header,
    "bare_ids": bare_ids,
    "other_names": other_names,
    "no_name": no_name,
    "swallowed_next": swallowed_next,
    "orphan_end": orphan_end,
    "double_encoded": double_encoded,
    "wrapped": wrapped,
    "python_dict": python_dict,
    "trailing_comma": trailing_comma,
    "fenced": fenced,
    "line_breaks_in_strings": line_breaks_in_strings,
    "said_twice": said_twice,
    "empty_arguments": empty_arguments,
    "null_arguments": null_arguments,
    "truncated": truncated,
    "truncated_raw": truncated_raw,
    "wrong_finish": wrong_finish,
    "undeclared": undeclared,
    "one_index": one_index,
    "other_indices": other_indices,
    "duplicate_ids": duplicate_ids,
    "whole_in_one_chunk": whole_in_one_chunk,
    "one_character_chunks": one_character_chunks,
    "text_after_section": text_after_section,
    "no_argument_marker": no_argument_marker,
    "lost_call": lost_call,
    "number_as_string": _mutating(_as_string),
    "encoded_value": _mutating(_encoded),
    "missing_required": _mutating(_less),
    "extra_property": _mutating(_more),
    "wrong_enum": _mutating(_other_word),
}


TEXTS = (
    "It is 7 °C in Skardu.",
    'K2 opens a call by `<|tool_call_begin|>` and ends it by "<|tool_call_end|>".',
    "The end is [EOS], or <|im_end|> in a chat; a < b, <|tool is nothing.",
    '{"name": "note", "arguments": {"text": "only text"}}',
    "functions.note:0 {}",
    "",
    "終わり 🏔 <",
    "<|tool_call_begin|> opens a call, as the manual says.",
)
