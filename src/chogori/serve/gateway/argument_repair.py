"""Arguments that say the right thing in the wrong form, put into the form that their schema asks for.

Every change keeps what was said: a number written as a string, an object encoded twice, a null for what may be left
out. Nothing is guessed, completed or dropped; where that would be needed, only the model can say what it meant.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import cast

from chogori.chat.messages import JSON
from chogori.serve.argument_schema import ArgumentSchema, Problem
from chogori.serve.gateway.nearly_json import strictly_written
from chogori.serve.tool_call_validity import read_json

MAX_CHANGES = 32
"""To values of one call."""
MAX_ENCODINGS = 3
"""How often whole arguments may have been encoded as a string."""
MAX_NAMED_PROBLEMS = 5
MAX_TRIED_PROBLEMS = 3
_WRAPPERS = frozenset({"arguments", "parameters", "input"})
_ABSENT = object()


class UnfitArguments(Exception):
    """Arguments that cannot be put right without the model. The message says why, for the model to read."""


def fitting_arguments(text: str, schema: ArgumentSchema) -> str:
    """The arguments as JSON that satisfies the schema; text that does already comes back as it was.

    Raises UnfitArguments.
    """
    try:
        return _fitting(text, schema)
    except (ValueError, RecursionError) as error:
        raise UnfitArguments(f"they are not JSON: {error}") from error


def _fitting(text: str, schema: ArgumentSchema) -> str:
    written = strictly_written(text) if text.strip() else "{}"
    value = read_json(written)
    for _ in range(MAX_ENCODINGS):
        if not isinstance(value, str):
            break
        written = strictly_written(value)
        value = read_json(written)
    if value is None:
        written, value = "{}", cast(Mapping[str, JSON], {})
    if not isinstance(value, Mapping):
        raise UnfitArguments(f"they are {written[:40]}; expected an object")
    problems = schema.problems(value)
    if not problems:
        return written
    for candidate in (value, _unwrapped(value)):
        fitted = None if candidate is None else _fitted(candidate, schema)
        if fitted is not None:
            return _written(fitted)
    raise UnfitArguments("; ".join(_said(problem) for problem in problems[:MAX_NAMED_PROBLEMS]))


def _unwrapped(value: Mapping[str, JSON]) -> Mapping[str, JSON] | None:
    """The arguments within an object that holds the call: its `arguments` alone, or beside its `name`."""
    inner = [value[key] for key in value if key in _WRAPPERS]
    if len(inner) != 1 or set(value) - _WRAPPERS - {"name"}:
        return None
    arguments = inner[0]
    if isinstance(arguments, str):
        arguments = read_json(strictly_written(arguments))
    return arguments if isinstance(arguments, Mapping) else None


def _fitted(value: JSON, schema: ArgumentSchema) -> JSON | None:
    """The value with single values written otherwise until the schema is satisfied; None where that does not help."""
    problems = schema.problems(value)
    for _ in range(MAX_CHANGES):
        if not problems:
            return value
        better = _better(value, problems, schema)
        if better is None:
            return None
        value, problems = better
    return None


def _better(value: JSON, problems: Sequence[Problem], schema: ArgumentSchema) -> tuple[JSON, list[Problem]] | None:
    """One value written otherwise, such that fewer problems are left, or the same deeper within it."""
    # Every problem must go, so the first ones say whether it is worth to go on.
    for problem in problems[:MAX_TRIED_PROBLEMS]:
        for other in _other_forms(_at(value, problem.path), problem):
            changed = _with(value, problem.path, other)
            left = schema.problems(changed)
            if len(left) < len(problems) or _moved_inward(problem, problems, left):
                return changed, left
    return None


def _moved_inward(problem: Problem, before: Sequence[Problem], after: Sequence[Problem]) -> bool:
    """Whether instead of a problem there are only others within the value that had it, now that it can be read."""
    depth = len(problem.path)
    new = [one for one in after if one not in before]
    return problem not in after and all(len(one.path) > depth and one.path[:depth] == problem.path for one in new)


def _other_forms(value: object, problem: Problem) -> Iterator[object]:
    """Other ways to write what a value says."""
    match value:
        case str():
            same = [option for option in problem.options if isinstance(option, str)]
            same = [option for option in same if option.strip().casefold() == value.strip().casefold()]
            if len(same) == 1:
                yield same[0]
            with contextlib.suppress(ValueError):
                yield read_json(strictly_written(value))
        case bool():
            yield "true" if value else "false"
        case int() | Decimal():
            yield str(value)
        case None:
            yield _ABSENT
        case _:
            pass


def _at(value: JSON, path: Sequence[str | int]) -> JSON:
    for step in path:
        value = cast("Mapping[str | int, JSON]", value)[step]
    return value


def _with(value: JSON, path: Sequence[str | int], new: object) -> JSON:
    """The value with a new one at a path, or without what was there."""
    if not path:
        return value if new is _ABSENT else cast(JSON, new)
    step, rest = path[0], path[1:]
    is_removed = new is _ABSENT and not rest
    if isinstance(value, Mapping):
        return {
            key: _with(item, rest, new) if key == step else item
            for key, item in value.items()
            if not (is_removed and key == step)
        }
    items = cast(Sequence[JSON], value)
    return [_with(item, rest, new) if index == step and not is_removed else item for index, item in enumerate(items)]


def _written(value: JSON) -> str:
    """JSON text, in which numbers are written as they were read."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_written(key)}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_written(item) for item in cast(Sequence[JSON], value)) + "]"
    return str(value) if isinstance(cast(object, value), Decimal) else json.dumps(value, ensure_ascii=False)


def _said(problem: Problem) -> str:
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem.path)
    return f"{where.removeprefix('.')}: {problem.message}" if where else problem.message
