"""JSON schemas with keywords that no grammar expresses, as narrower ones that a grammar does express: all that
satisfies the narrower schema satisfies the schema itself.

Tools in the wild use such keywords (a Zod record says `propertyNames`), and to refuse the whole request would help
nobody. What cannot be narrowed is left as it is, and refused by the compiler of the grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_LISTS = ("anyOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "if", "then", "propertyNames")


def narrowed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` without `propertyNames`, `uniqueItems`, `dependentRequired`, `dependentSchemas` and `if`.

    - `propertyNames`: names that any string satisfies need nothing; a pattern or an enumeration takes the place of the
      additional properties.
    - `uniqueItems`: at most one item. Arrays that must have more are left as they are.
    - `dependentRequired`, `dependentSchemas`: what depends is always required.
    - `if`: it holds, and so does `then`.
    """
    out = dict(schema)
    # Not within `not` and `oneOf`: what is narrower there makes the whole wider.
    for key in _SCHEMAS_BY_NAME:
        if isinstance(out.get(key), Mapping):
            out[key] = {name: _narrowed_value(value) for name, value in out[key].items()}
    for key in _SCHEMA_LISTS:
        if isinstance(out.get(key), list):
            out[key] = [_narrowed_value(value) for value in out[key]]
    for key in _SCHEMAS:
        if key in out:
            out[key] = _narrowed_value(out[key])
    for narrow in _STEPS:
        narrow(out)
    return out


def _narrowed_value(value: Any) -> Any:
    return narrowed(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else value


def _property_names(schema: dict[str, Any]) -> None:
    names = schema.get("propertyNames")
    if names is True or (isinstance(names, Mapping) and set(names) <= {"type", "description", "title"}):
        if names is True or names.get("type", "string") == "string":
            del schema["propertyNames"]
        return
    # Declared properties would have to be sorted by whether their names may be.
    if not isinstance(names, Mapping) or schema.get("properties") or schema.get("patternProperties"):
        return
    names = cast(Mapping[str, Any], names)
    value = schema.get("additionalProperties", True)
    if set(names) <= {"type", "pattern", "description"} and isinstance(names.get("pattern"), str):
        schema["patternProperties"] = {names["pattern"]: value}
    elif set(names) <= {"type", "enum", "description"} and isinstance(names.get("enum"), list):
        schema["properties"] = {str(name): value for name in names["enum"] if isinstance(name, str)}
    else:
        return
    schema["additionalProperties"] = False
    del schema["propertyNames"]


def _unique_items(schema: dict[str, Any]) -> None:
    if schema.get("uniqueItems") is False:
        del schema["uniqueItems"]
        return
    fewest, most, first = schema.get("minItems", 0), schema.get("maxItems", 1), schema.get("prefixItems", [])
    if not (isinstance(fewest, int) and isinstance(most, int) and isinstance(first, list)):
        return
    if schema.get("uniqueItems") is True and max(fewest, len(cast(list[Any], first))) <= 1:
        schema["maxItems"] = min(1, most)
        del schema["uniqueItems"]


def _dependent_required(schema: dict[str, Any]) -> None:
    dependents, required = schema.get("dependentRequired"), schema.get("required", [])
    if not isinstance(dependents, Mapping) or not isinstance(required, list):
        return
    lists = list(cast(Mapping[str, Any], dependents).values())
    if not all(isinstance(names, list) for names in lists):
        return
    names = [name for names in (required, *lists) for name in cast(list[Any], names)]
    schema["required"] = list(dict.fromkeys(map(str, names)))
    del schema["dependentRequired"]


def _dependent_schemas(schema: dict[str, Any]) -> None:
    dependents = schema.get("dependentSchemas")
    if isinstance(dependents, Mapping) and _require(schema, *cast(Mapping[str, Any], dependents).values()):
        del schema["dependentSchemas"]


def _condition(schema: dict[str, Any]) -> None:
    if "if" not in schema:
        schema.pop("then", None)
        schema.pop("else", None)
    elif _require(schema, *(part for part in (schema["if"], schema.get("then", True)) if part is not True)):
        for key in ("if", "then", "else"):
            schema.pop(key, None)


def _require(schema: dict[str, Any], *parts: Any) -> bool:
    """Add to what must all be satisfied; False where the schema is not one."""
    known = schema.get("allOf", [])
    if not isinstance(known, list):
        return False
    if parts:
        schema["allOf"] = [*cast(list[Any], known), *parts]
    return True


_STEPS: tuple[Callable[[dict[str, Any]], None], ...] = (
    _property_names,
    _unique_items,
    _dependent_required,
    _dependent_schemas,
    _condition,
)
