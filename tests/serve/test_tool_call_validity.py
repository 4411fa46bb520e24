"""Whether calls satisfy their schemas, also where the schema means harm."""

from __future__ import annotations

import json
import random
from types import MappingProxyType
from typing import Any

import jsonschema
import pytest

from chogori.chat.messages import JSON, ToolSpec
from chogori.serve.tool_call_validity import validity_of
from tests.engine.random_schemas import NAMES, random_tool_schema

VALUES: list[Any] = [
    1,
    1.0,
    -2.5,
    "",
    "ab",
    "123-4567",
    None,
    True,
    [],
    [1, 2],
    {},
    {"value": 3},
    "2026-01-01",
    "x" * 20,
]

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


A60 = '{"a": "%s!"}' % ("a" * 60)


@pytest.mark.parametrize(
    ("schema", "validity"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$"}}}, "schema_violation"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+!$"}}}, "valid"),
        # Looks ahead, so it is matched by going back; within a bound, over which it counts as no match.
        ({"type": "object", "properties": {"a": {"pattern": "^(?=a)(a|a)+$"}}}, "schema_violation"),
        ({"type": "object", "patternProperties": {"(a+)+$": {"type": "integer"}}}, "schema_violation"),
        ({"$ref": "#"}, "valid"),
        ({"type": "no such type"}, "unchecked"),
        ({"$ref": "http://127.0.0.1:1/schema.json"}, "unchecked"),
        ({"properties": {"a": {"pattern": "("}}}, "unchecked"),
        ({"properties": {"a": {"pattern": "((a{500}){500}){500}"}}}, "unchecked"),
    ],
    ids=["backtracks", "backtracks, matches", "looks ahead", "of names", "itself", "wrong type", "network", "no regex",
         "huge regex"],
)  # fmt: skip
def test_schemas_that_mean_harm_are_decided_all_the_same(schema: dict[str, JSON], validity: str) -> None:
    assert validity_of(ToolSpec(name="f", parameters=schema), A60) == validity


@pytest.mark.parametrize("arguments", ['{"city": NaN}', '{"city": "a"} {}', r'{"city": "\ud800"}', '{"city": "a\nb"}'])
def test_what_json_does_not_have_is_no_json(arguments: str) -> None:
    assert validity_of(ToolSpec(name="f", parameters={"type": "object"}), arguments) == "not_json"


def test_the_independent_validator_agrees_on_random_schemas() -> None:
    """jsonschema is an implementation of its own; it decides on values that fit some of the schemas, and on others."""
    counts = {True: 0, False: 0}
    for seed in range(300):
        random_ = random.Random(seed)
        schema = random_tool_schema(random_)
        value = {name: random_.choice(VALUES) for name in random_.sample(NAMES, random_.randint(0, 3))}
        expected = jsonschema.Draft202012Validator(schema).is_valid(value)
        validity = validity_of(ToolSpec(name="f", parameters=schema), json.dumps(value))
        assert validity == ("valid" if expected else "schema_violation"), (schema, value)
        counts[expected] += 1
    assert min(counts.values()) > 50


def test_a_call_of_nothing_declared() -> None:
    assert validity_of(None, "{}") == "undeclared"


def test_a_schema_of_other_mappings_is_read_as_one_of_dicts() -> None:
    schema = MappingProxyType({"type": "object", "properties": MappingProxyType({"a": {"type": "integer"}})})
    tool = ToolSpec(name="f", parameters=schema)
    assert [validity_of(tool, f'{{"a": {a}}}') for a in ("1", '"1"')] == ["valid", "schema_violation"]
