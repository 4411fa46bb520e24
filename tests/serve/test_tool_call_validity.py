"""Whether calls satisfy their schemas, also where the schema means harm."""

from __future__ import annotations

import pytest

from chogori.chat.messages import JSON, ToolSpec
from chogori.serve.tool_call_validity import validity_of

CITY: dict[str, JSON] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BY_REFERENCE: dict[str, JSON] = {
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"type": "integer"}},
}


@pytest.mark.parametrize(
    ("schema", "arguments", "validity"),
    [
        (CITY, '{"city": "Skardu"}', "valid"),
        (CITY, '{"city": 7}', "schema_violation"),
        (CITY, "{}", "schema_violation"),
        (CITY, "[]", "schema_violation"),
        (CITY, '{"city": "Ska', "not_json"),
        (CITY, "", "not_json"),
        (CITY, "[" * 100_000, "not_json"),
        (BY_REFERENCE, '{"n": 1}', "valid"),
        (BY_REFERENCE, '{"n": "1"}', "schema_violation"),
        # A property may be called "pattern".
        ({"type": "object", "properties": {"pattern": {"type": "string"}}}, '{"pattern": 1}', "schema_violation"),
    ],
)
def test_calls_are_judged(schema: dict[str, JSON], arguments: str, validity: str) -> None:
    assert validity_of(ToolSpec(name="f", parameters=schema), arguments) == validity


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$"}}},
        {"type": "object", "patternProperties": {"(a+)+$": {}}},
        {"type": "no such type"},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "#"},
    ],
    ids=["catastrophic pattern", "pattern of names", "wrong type", "network", "itself"],
)
def test_schemas_that_would_do_harm_are_not_followed(schema: dict[str, JSON]) -> None:
    assert validity_of(ToolSpec(name="f", parameters=schema), '{"a": "%s!"}' % ("a" * 60)) == "unchecked"


def test_a_call_of_nothing_declared() -> None:
    assert validity_of(None, "{}") == "undeclared"
