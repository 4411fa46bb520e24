"""Frozen config records to JSON and back, exactly. Loads no torch.

Nested dataclasses, tuples, paths, literals, optionals and unions of dataclasses (told apart by a "type" entry) are
restored to equal values; a field that is unknown, or of another type, is a ConfigError that names it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar, Union, cast, get_args, get_origin

from chogori.errors import ConfigError

Record = TypeVar("Record")


def to_json(value: object) -> object:
    """Dicts, lists, strings, numbers, booleans and None that stand for `value`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {entry.name: to_json(getattr(value, entry.name)) for entry in dataclasses.fields(value) if entry.init}
        return {"type": type(value).__name__, **record}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_json(item) for item in cast("list[object]", value)]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in cast("Mapping[object, object]", value).items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no JSON form for {type(value).__name__}")


def from_json(kind: type[Record], value: object, *, where: str = "config") -> Record:
    """The record of class `kind` that `to_json` wrote as `value`; validated again by its constructor."""
    return cast(Record, _restore(kind, value, where))


def differing_fields(old: object, new: object, prefix: str = "") -> list[tuple[str, object, object]]:
    """Dotted names of the fields in which two JSON forms differ, each with both values (None where absent)."""
    if isinstance(old, dict) and isinstance(new, dict):
        old_map, new_map = cast("dict[str, object]", old), cast("dict[str, object]", new)
        found: list[tuple[str, object, object]] = []
        for name in {**old_map, **new_map}:
            found += differing_fields(old_map.get(name), new_map.get(name), f"{prefix}.{name}" if prefix else name)
        return found
    return [] if old == new else [(prefix, old, new)]


def _restore(kind: object, value: object, where: str) -> object:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _restore_union(get_args(kind), value, where)
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(map(repr, get_args(kind)))}")
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; expected a list")
        items = cast("list[object]", value)
        inner = get_args(kind)
        kinds = [inner[0]] * len(items) if len(inner) == 1 or inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(items):
            raise ConfigError(f"{where} has {len(items)} entries; expected {len(kinds)}")
        restored = [_restore(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, items, strict=True))]
        return tuple(restored) if origin is tuple else restored
    if isinstance(kind, type):
        return _restore_plain(kind, value, where)
    raise TypeError(f"{where}: no way to restore {kind!r}")


def _restore_union(kinds: tuple[object, ...], value: object, where: str) -> object:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if isinstance(value, dict):
        name = cast("dict[str, object]", value).get("type")
        kinds = tuple(kind for kind in kinds if getattr(kind, "__name__", None) == name) or kinds
    refusals: list[str] = []
    # An exact type first, so that 1 stays an int under `float | int`.
    exact = cast(object, type(value))
    for kind in sorted(kinds, key=lambda kind: kind is not exact):
        try:
            return _restore(kind, value, where)
        except ConfigError as error:
            refusals.append(str(error))
    raise ConfigError("; or ".join(refusals))


def _restore_plain(kind: type, value: object, where: str) -> object:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}; expected the fields of {kind.__name__}")
        record = {name: item for name, item in cast("dict[str, object]", value).items() if name != "type"}
        kinds = typing.get_type_hints(kind)
        names = {entry.name for entry in dataclasses.fields(kind) if entry.init}
        if unknown := sorted(set(record) - names):
            raise ConfigError(
                f"{where} has the unknown field {unknown[0]!r}; {kind.__name__} has {', '.join(sorted(names))}"
            )
        return kind(**{name: _restore(kinds[name], item, f"{where}.{name}") for name, item in record.items()})
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r}; expected {kind.__name__}")
