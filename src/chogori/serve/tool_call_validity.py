"""Whether the arguments of a tool call satisfy the schema that the tool was declared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from chogori.chat.messages import JSON, ToolSpec

Validity = Literal["valid", "not_json", "schema_violation", "undeclared", "unchecked"]


def validity_of(tool: ToolSpec | None, arguments: str) -> Validity:
    """How a finished call fits the tool of its name, None where none was declared.

    Schemas with regular expressions are not checked: Python's take exponential time on the wrong pattern, and the
    pattern is the client's. Nor are schemas that are themselves wrong, or refer to something outside.
    """
    if tool is None:
        return "undeclared"
    try:
        value = cast(JSON, json.loads(arguments))
    except (ValueError, RecursionError):
        return "not_json"
    if not isinstance(value, Mapping):
        return "schema_violation"
    if _has_pattern(tool.parameters):
        return "unchecked"
    # Heavy, and needed by the first tool call only.
    from jsonschema import Draft202012Validator
    from referencing import Registry

    try:
        # An empty registry: the default one would fetch what `$ref` names from the network.
        validator = cast(Any, Draft202012Validator(dict(tool.parameters), registry=Registry()))  # partly untyped
        return "valid" if validator.is_valid(value) else "schema_violation"
    except Exception:
        # Whatever the validator stumbles over is in the client's schema, and an answer must not fail by being counted.
        return "unchecked"


def _has_pattern(schema: JSON) -> bool:
    pending: list[JSON] = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, Mapping):
            if isinstance(item.get("pattern"), str) or "patternProperties" in item:
                return True
            pending.extend(item.values())
        elif isinstance(item, Sequence) and not isinstance(item, str):
            pending.extend(cast(Sequence[JSON], item))
    return False
