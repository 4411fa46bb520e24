"""Whether the arguments of a tool call satisfy the schema that the tool was declared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, cast

from chogori.chat.messages import JSON, ToolSpec
from chogori.errors import MessageError
from chogori.serve.argument_schema import ArgumentSchema

Validity = Literal["valid", "not_json", "schema_violation", "undeclared", "unchecked"]


def validity_of(tool: ToolSpec | None, arguments: str) -> Validity:
    """How a finished call fits the tool of its name, None where none was declared.

    `unchecked` is only what no call can be held against: a schema that is itself wrong, or refers to something outside.
    """
    if tool is None:
        return "undeclared"
    try:
        value = read_json(arguments)
    except ValueError:
        return "not_json"
    if not isinstance(value, Mapping):
        return "schema_violation"
    try:
        return "schema_violation" if ArgumentSchema.of(tool.parameters).problems(value) else "valid"
    except MessageError:
        return "unchecked"
    except ValueError:
        return "not_json"


def read_json(text: str) -> JSON:
    """Read JSON text; numbers with a fraction come as Decimal, which keeps how they were written.

    Raises ValueError for anything else, such as NaN, halves of characters, and for what no program can hold: numbers
    with exponents of twenty digits, nesting deeper than is ever meant.
    """
    try:
        value = cast(JSON, json.loads(text, parse_constant=_refuse, parse_float=_number))
        if "\\ud" in text.lower():  # half of a pair of escapes makes a string that is no text
            json.dumps(value, ensure_ascii=False, default=str).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError as error:
        raise ValueError(f"{text[:40]} is out of every range") from error


def _refuse(constant: str) -> JSON:
    raise ValueError(f"{constant} is no JSON")
