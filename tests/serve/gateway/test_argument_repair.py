"""Arguments in the wrong form: put into that of the schema where they say the same, and refused where they do not."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chogori.serve.argument_schema import ArgumentSchema
from chogori.serve.gateway.argument_repair import UnfitArguments, fitting_arguments
from tests.engine.random_schemas import NAMES, random_tool_schema

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["metric", "imperial"]},
        "hourly": {"type": "boolean"},
        "places": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "required": ["city"],
    "additionalProperties": False,
}


def fitting(text: str, schema: dict[str, Any] = SCHEMA) -> str:
    return fitting_arguments(text, ArgumentSchema.of(schema))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"city": "K2", "days": "3"}', '{"city": "K2", "days": 3}'),
        ('{"city": "K2", "hourly": "True"}', '{"city": "K2", "hourly": true}'),
        ('{"city": 8611}', '{"city": "8611"}'),
        ('{"city": 1.10}', '{"city": "1.10"}'),
        ('{"city": true}', '{"city": "true"}'),
        ('{"city": "K2", "unit": "Metric "}', '{"city": "K2", "unit": "metric"}'),
        ('{"city": "K2", "days": null}', '{"city": "K2"}'),
        ('{"city": "K2", "limit": null}', '{"city": "K2", "limit": null}'),
        ('{"city": "K2", "limit": "7"}', '{"city": "K2", "limit": 7}'),
        ('{"city": "K2", "places": "[{\\"x\\": \\"1.50\\"}]"}', '{"city": "K2", "places": [{"x": 1.50}]}'),
        (json.dumps(json.dumps('{"city": "K2"}')), '{"city": "K2"}'),
        ('{"name": "forecast", "arguments": {"city": "K2", "days": "3"}}', '{"city": "K2", "days": 3}'),
        ("{\"parameters\": \"{'city': 'K2'}\"}", '{"city": "K2"}'),
    ],
)
def test_what_says_the_same_is_put_right(text: str, written: str) -> None:
    assert fitting(text) == written


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", '"city" is a required property'),
        ('{"city": "K2", "day": 3}', "'day' was unexpected"),
        ('{"city": "K2", "unit": "kelvin"}', 'unit: "kelvin" is not one of'),
        ('{"city": "K2", "days": "three"}', 'days: "three" is not of type "integer"'),
        ('{"city": "K2", "days": 3.5}', "days: 3.5 is not of type"),
        ('{"city": null}', "city: null is not of type"),
        ('{"city": "K2", "places": [{"x": 1}, {"x": "far"}]}', r"places\[1\].x: "),
        ('{"city": "K2"', "they are not JSON"),
        ("[1]", "expected an object"),
        ('"Skardu"', "they are not JSON"),
    ],
)
def test_what_only_the_model_can_say_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UnfitArguments, match=reason):
        fitting(text)


def test_one_spelling_of_two_options_is_no_choice() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": ["Up", "UP"]}}}
    with pytest.raises(UnfitArguments):
        fitting('{"a": "up"}', schema)


@settings(max_examples=300)
@given(seed=st.integers(0, 100_000))
def test_what_fits_stays_and_what_comes_out_fits(seed: int) -> None:
    random_ = random.Random(seed)
    schema = random_tool_schema(random_)
    values: list[Any] = [1, "1", "true", None, "null", 2.5, "[]", [], "x", {}, '{"value": "3"}', "red", "RED", False]
    value = {name: random_.choice(values) for name in random_.sample(NAMES, random_.randint(0, 3))}
    text = json.dumps(value)
    compiled = ArgumentSchema.of(schema)
    if not compiled.problems(value):
        assert fitting(text, schema) == text
        return
    try:
        written = fitting(text, schema)
    except UnfitArguments:
        return
    assert not compiled.problems(json.loads(written))
    assert fitting(written, schema) == written
