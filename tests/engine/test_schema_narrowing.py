"""Narrowed schemas: whatever satisfies them satisfies the schema itself, and grammars express them."""

import json
import random
from typing import Any

import jsonschema
import pytest

from chogori.engine.schema_narrowing import narrowed
from chogori.engine.vocabulary import Vocabulary
from chogori.errors import RequestError

A = {"type": "string"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "names of any string": (
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": A},
        {"type": "object", "additionalProperties": A},
    ),
    "names by pattern": (
        {"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": A},
        {"type": "object", "patternProperties": {"^x": A}, "additionalProperties": False},
    ),
    "names by enumeration": (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": A},
        {"type": "object", "properties": {"a": A, "b": A}, "additionalProperties": False},
    ),
    "unique items": (
        {"type": "array", "items": A, "uniqueItems": True, "maxItems": 5},
        {"type": "array", "items": A, "maxItems": 1},
    ),
    "items that may repeat": ({"type": "array", "uniqueItems": False}, {"type": "array"}),
    "dependent names": (
        {"type": "object", "properties": {"a": A, "b": A}, "required": ["a"], "dependentRequired": {"a": ["b"]}},
        {"type": "object", "properties": {"a": A, "b": A}, "required": ["a", "b"]},
    ),
    "dependent schemas": (
        {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
        {"type": "object", "allOf": [{"required": ["b"]}]},
    ),
    "a condition": (
        {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}},
        {"type": "object", "allOf": [{"required": ["a"]}, {"required": ["b"]}]},
    ),
    "a condition without consequence": ({"else": {"required": ["c"]}, "type": "object"}, {"type": "object"}),
}


@pytest.mark.parametrize("name", CASES)
def test_keywords_become_others_at_any_depth(name: str) -> None:
    schema, expected = CASES[name]
    before = json.dumps(schema)
    assert narrowed(schema) == expected
    assert json.dumps(schema) == before
    deep = {"properties": {"p": {"anyOf": [{"type": "array", "items": schema}]}}, "$defs": {"d": schema}}
    inner = {"properties": {"p": {"anyOf": [{"type": "array", "items": expected}]}}, "$defs": {"d": expected}}
    assert narrowed(deep) == inner


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True, "minItems": 2},
        {"type": "object", "propertyNames": {"maxLength": 3}},
        {"type": "object", "properties": {"abc": A}, "propertyNames": {"pattern": "^x"}},
        {"not": {"type": "array", "uniqueItems": True}},
        {"oneOf": [{"type": "array", "uniqueItems": True}, {"type": "array"}]},
        {"enum": [{"if": 1}], "const": {"uniqueItems": True}},
    ],
)
def test_what_cannot_be_narrowed_and_what_is_no_schema_stays(schema: dict[str, Any]) -> None:
    assert narrowed(schema) == schema


def some_value(random_: random.Random, depth: int = 2) -> Any:
    """Values that satisfy or miss the schemas of CASES by about as much."""
    if depth and random_.random() < 0.5:
        names = random_.sample(["a", "b", "c", "xa", "xb"], random_.randint(0, 3))
        return {name: some_value(random_, depth - 1) for name in names}
    if depth and random_.random() < 0.5:
        return [some_value(random_, 0) for _ in range(random_.randint(0, 3))]
    return random_.choice(["a", "b", 1, None])


@pytest.mark.parametrize("name", CASES)
def test_the_narrower_schema_admits_nothing_that_the_schema_does_not(name: str) -> None:
    schema, _ = CASES[name]
    narrower = narrowed(schema)
    random_ = random.Random(0)
    num_satisfying = 0
    for _ in range(20_000):
        value = some_value(random_)
        if jsonschema.Draft202012Validator(narrower).is_valid(value):
            num_satisfying += 1
            jsonschema.Draft202012Validator(schema).validate(value)
    assert num_satisfying > 5


@pytest.mark.parametrize(
    "schema",
    [
        {"dependentRequired": {"a": 3}},
        {"dependentRequired": [1]},
        {"required": 3, "dependentRequired": {"a": ["b"]}},
        {"uniqueItems": True, "minItems": "x"},
        {"uniqueItems": True, "maxItems": "y"},
        {"uniqueItems": True, "prefixItems": 3},
        {"dependentSchemas": {"a": {}}, "allOf": 3},
        {"dependentSchemas": 3},
        {"if": {"type": "null"}, "allOf": {}},
        {"propertyNames": 3},
    ],
)
def test_what_is_no_schema_stays_to_be_refused(vocabulary: Vocabulary, schema: dict[str, Any]) -> None:
    assert narrowed(schema) == schema
    with pytest.raises(RequestError, match="cannot be enforced"):
        vocabulary.matcher_of_schema(schema, field="tools[0].function.parameters")
