"""What is wrong with a request's parameters, in the words of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from chogori.errors import ChogoriError

Complaint = Mapping[str, object]
MAX_SHOWN_CHARS = 80
"""Of a value that is quoted back."""
NO_TEXT = "it is not valid UTF-8 text"
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""pydantic's complaints of a wrong type, and what they miss."""
_NAMES = {"bool": "a boolean", "int": "an integer", "float": "a decimal", "str": "a string", "list": "an array"}
_BOUNDS = {
    "greater_than_equal": ("ge", ">=", "below minimum value", "below_min_value"),
    "greater_than": ("gt", ">", "below minimum value", "below_min_value"),
    "less_than_equal": ("le", "<=", "above maximum value", "above_max_value"),
    "less_than": ("lt", "<", "above maximum value", "above_max_value"),
}
_LENGTHS = {
    "too_short": ("array", "minimum", "min_length", "too short", "below_min_length"),
    "too_long": ("array", "maximum", "max_length", "too long", "above_max_length"),
    "string_too_short": ("string", "minimum", "min_length", "too short", "below_min_length"),
    "string_too_long": ("string", "maximum", "max_length", "too long", "above_max_length"),
}


class UnreadableBody(ChogoriError):
    """A body that is no JSON, and why."""


@dataclass(frozen=True, kw_only=True)
class InvalidParameter:
    """One thing that is wrong: what is said of it, where it is, and OpenAI's word for it."""

    message: str
    field: str | None
    code: str


def invalid_parameter(error: RequestValidationError) -> InvalidParameter:
    """The most telling of pydantic's complaints."""
    complaints = cast(Sequence[Complaint], error.errors())
    # Where a parameter may be of several types, each of them complains; who found the right type knows best, else who
    # came furthest.
    first = _location(complaints[0])[:1]
    alternatives = [complaint for complaint in complaints if _location(complaint)[:1] == first]
    best = min(alternatives, key=_ignorance)
    path = path_of(_location(best))
    at_one_place = [complaint for complaint in alternatives if path_of(_location(complaint)) == path]
    message, code = _words(path, best, at_one_place)
    return InvalidParameter(message=message, field=path or None, code=code)


def unreadable_body(error: Exception) -> str | None:
    """Why a body could not be read as JSON; None where that is not what went wrong."""
    match error:
        case UnreadableBody():
            return str(error)
        case RequestValidationError():
            complaint = cast(Sequence[Complaint], error.errors())[0]
            place = cast(Sequence[object], complaint["loc"])[-1]
            if complaint["type"] != "json_invalid" or not isinstance(place, int):
                return None
            reason = cast(Mapping[str, object], complaint["ctx"])["error"]
            return str(json.JSONDecodeError(str(reason), str(cast(object, error.body)), place))
        case HTTPException(status_code=400, __cause__=RecursionError()):
            return "it is nested too deeply"
        case HTTPException(status_code=400, __cause__=UnicodeDecodeError() as cause):
            return f"{NO_TEXT} (byte {cause.start})"
        case HTTPException(status_code=400, __cause__=ValueError()):
            return "it holds a number of too many digits"
        case _:
            return None


def path_of(location: Sequence[str | int]) -> str:
    """`messages[0].content` of ("messages", 0, "content"), leaving out what only names an alternative of a union."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool") and not part[0].isupper():
            path += f".{part}" if path else part
    return path


def _location(complaint: Complaint) -> list[str | int]:
    parts = cast(Sequence[str | int], complaint["loc"])
    return list(parts[1:]) if parts and parts[0] in ("body", "query", "path") else list(parts)


def _ignorance(complaint: Complaint) -> tuple[bool, int]:
    path = path_of(_location(complaint))
    return complaint["type"] in _EXPECTED, -path.count("[") - path.count(".")


def _words(path: str, best: Complaint, at_one_place: Sequence[Complaint]) -> tuple[str, str]:
    """What is said, and OpenAI's code for it."""
    kind, value = str(best["type"]), best.get("input")
    context = cast(Mapping[str, object], best.get("ctx") or {})
    name = f"'{path}'" if path else "the request body"
    if kind == "missing":
        missing = f"Missing required parameter: {name}." if path else "Missing request body; expected a JSON object."
        return missing, "missing_required_parameter"
    if kind == "extra_forbidden":
        return f"Unknown parameter: {name}.", "unknown_parameter"
    if kind in _EXPECTED:
        types = list(dict.fromkeys(_EXPECTED[str(c["type"])] for c in at_one_place if c["type"] in _EXPECTED))
        expected = f"one of {' or '.join(types)}" if len(types) > 1 else types[0]
        return f"Invalid type for {name}: expected {expected}, but got {_type_of(value)} instead.", "invalid_type"
    if kind in _BOUNDS:
        key, sign, words, code = _BOUNDS[kind]
        bound = cast(float, context[key])
        number, shown = ("integer", str(bound)) if isinstance(bound, int) else ("decimal", f"{bound:g}")
        expected = f"Expected a value {sign} {shown}, but got {_shown(value)} instead."
        return f"Invalid {name}: {number} {words}. {expected}", f"{number}_{code}"
    if kind in _LENGTHS:
        return _length_words(name, kind, context, len(cast(Sequence[object], value)))
    if kind == "literal_error":
        supported = str(context["expected"]).replace(" or ", " and ")
        return f"Invalid value: {_shown(value)}. Supported values are: {supported}.", "invalid_value"
    expected = str(best["msg"]).removeprefix("Input should be ")
    if expected != best["msg"]:
        return f"Invalid value for {name}: expected {expected}, but got {_type_of(value)} instead.", "invalid_value"
    return f"Invalid value for {name}: {expected}.", "invalid_value"


def _length_words(name: str, kind: str, context: Mapping[str, object], length: int) -> tuple[str, str]:
    noun, bound, key, words, code = _LENGTHS[kind]
    article = "an" if noun == "array" else "a"
    expected = f"Expected {article} {noun} with {bound} length {context[key]}"
    if not length:
        return f"Invalid {name}: empty {noun}. {expected}, but got an empty {noun} instead.", f"empty_{noun}"
    got = f"but got {article} {noun} with length {length} instead"
    return f"Invalid {name}: {noun} {words}. {expected}, {got}.", f"{noun}_{code}"


def _type_of(value: object) -> str:
    return "null" if value is None else _NAMES.get(type(value).__name__, "an object")


def _shown(value: object) -> str:
    """A value as JSON has it, texts in single quotes as OpenAI has them."""
    if isinstance(value, str):
        text = f"'{value}'"
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except ValueError:  # Python writes no number of thousands of digits
            return "a number of very many digits"
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."
