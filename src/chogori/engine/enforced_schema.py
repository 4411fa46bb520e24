"""A JSON schema as it is given to the grammar: never looser than the client's, where llguidance alone would be.

Loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from chogori.engine.number_bounds import as_read
from chogori.engine.pattern_syntax import in_rust

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_DATA = ("enum", "const", "default", "examples")

Schema = Mapping[str, Any]


def enforced_schema(schema: Schema) -> dict[str, Any]:
    """`schema` without the ways to satisfy its grammar but not itself.

    `x-guidance` is dropped: in it a client could switch off keywords, which llguidance then ignores. Keys beyond the
    declared ones are written without escapes: llguidance bars a declared name from them, but lets `"\\u0061"` pass,
    which is a second "a" of any type. Where pattern properties are declared too, no further keys are allowed. Bounds of
    numbers are those of their readers (`number_bounds`), patterns mean what they mean in ECMAScript (`pattern_syntax`).

    Raises ValueError for a number of properties that keys written twice would only seem to reach, and for the
    exclusive bounds of draft 4, which llguidance ignores.
    """
    return _rewritten(schema, _enforced)


def without_format(schema: Schema, name: str) -> dict[str, Any]:
    """`schema` without the format `name`."""
    return _rewritten(schema, lambda fields: {k: v for k, v in fields.items() if not (k == "format" and v == name)})


def _enforced(fields: Mapping[str, Any]) -> dict[str, Any]:
    out = {key: value for key, value in fields.items() if key != "x-guidance"}
    least, required = out.get("minProperties"), out.get("required")
    if (
        isinstance(least, int)
        and least > (len(set(map(str, required))) if isinstance(required, list | tuple) else 0) + 1
    ):
        raise ValueError(f"minProperties is {least}; expected at most one more than the properties required")
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(out.get(key), bool):
            raise ValueError(f"{key} is {out[key]}; expected a number, the bound itself")
    out = as_read(out)
    if isinstance(out.get("pattern"), str):
        out["pattern"] = in_rust(out["pattern"])
    if isinstance(patterns := out.get("patternProperties"), Mapping):
        out["patternProperties"] = {in_rust(key): value for key, value in cast(Mapping[str, Any], patterns).items()}
    further = out.get("additionalProperties", True)
    if further is False:
        return out
    if out.get("patternProperties"):
        out["additionalProperties"] = False
    elif out.get("properties"):
        names = () if further is True else out["properties"]
        out["patternProperties"] = {f"^{_other_than(names)}$": further}
        out["additionalProperties"] = False
    return out


def _rewritten(schema: Any, rewrite: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    """`rewrite` applied to a schema and all within it, and to nothing that only looks like one, such as an enum."""
    if not isinstance(schema, Mapping):
        return schema
    out = rewrite(cast(Mapping[str, Any], schema))
    for key, value in out.items():
        if key in _NAMED and isinstance(value, Mapping):
            named = cast(Mapping[str, Any], value)
            out[key] = {name: _rewritten(one, rewrite) for name, one in named.items()}
        elif key not in _DATA and isinstance(value, list | tuple):
            out[key] = [_rewritten(one, rewrite) for one in cast(list[Any], value)]
        elif key not in _DATA:
            # Under any other key too: a reference may lead there.
            out[key] = _rewritten(value, rewrite)
    return out


_PLAIN = r'"\\\x00-\x1f'
"""What a key without escapes does not contain, inside a character class."""


def _other_than(names: Iterable[str]) -> str:
    """A regular expression of all plain texts but `names`."""
    starts: dict[str, list[str]] = {}
    may_end = True
    for name in names:
        if name:
            starts.setdefault(name[0], []).append(name[1:])
        else:
            may_end = False
    others = "".join(re.escape(start) for start in starts)
    ways = [f"[^{_PLAIN}{others}][^{_PLAIN}]*"]
    ways += [
        re.escape(start) + _other_than(rest) for start, rest in starts.items() if start not in '"\\' and start > "\x1f"
    ]
    return f"({'|'.join(ways)}){'?' if may_end else ''}"
