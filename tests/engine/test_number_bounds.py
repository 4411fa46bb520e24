"""Numbers within the bounds given to the grammar are within the schema's own, as a reader of doubles sees it."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.engine.number_bounds import WIDEST, as_read
from chogori.engine.vocabulary import Vocabulary
from tests.engine.constraint_driving import check_json

BOUNDS = st.floats(-1e18, 1e18) | st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 0.1, -0.3, 2**53 + 1, 1e-70])
KEYS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


@given(bounds=st.dictionaries(st.sampled_from(KEYS), BOUNDS), kind=st.sampled_from(["number", "integer", None]))
def test_the_bounds_are_included_and_within_the_schemas_own(bounds: dict[str, float], kind: str | None) -> None:
    """What the bound itself satisfies, all beyond it does, since reading decimals as doubles keeps their order."""
    read = as_read(bounds if kind is None else {**bounds, "type": kind})
    assert not {"exclusiveMinimum", "exclusiveMaximum"} & set(read)
    for key, sign in (("minimum", 1), ("maximum", -1)):
        own = {name: value for name, value in bounds.items() if name.lower().endswith(key)}
        assert (key in read) == bool(own)
        if own:
            check_json(json.dumps(read[key]), own)
            tightest = max(sign * value for value in own.values())
            lost = sign * read[key] - tightest
            # Beside what `SMALLEST` and `WIDEST` name, and what lies between integers.
            assert lost <= abs(tightest) * 1e-14 + 1e-59 + (kind == "integer") or tightest < -WIDEST


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number", "exclusiveMaximum": 1}, "0.99999999999999999999"),
        ({"type": "number", "exclusiveMinimum": 0}, "0." + "0" * 400 + "1"),
        ({"exclusiveMinimum": 0.1}, "0.1000000000000000000000001"),
        ({"type": "integer", "minimum": 2**53 + 1}, str(2**53)),
        ({"type": "integer", "exclusiveMaximum": 2**53 + 3}, str(2**53 + 3)),
        ({"type": "integer", "exclusiveMaximum": 2**63 - 1}, str(2**63 - 1)),
    ],
)
def test_what_reads_as_the_bound_is_beyond_it(vocabulary: Vocabulary, schema: dict[str, Any], text: str) -> None:
    with pytest.raises(Exception, match=r"less than|greater than"):
        check_json(text, schema)
    assert not admits(vocabulary, schema, text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "-42"),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, "0"),
        ({"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1}, str(2**53 - 1)),
        ({"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}, "-1.5"),
        ({"type": "number", "exclusiveMinimum": 0}, "0.000000000001"),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "0.999999999999999"),
        ({"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5}, "0.5"),
        ({"type": "integer", "exclusiveMinimum": 2.5}, "3"),
        ({"type": ["integer", "null"], "exclusiveMinimum": 2}, "3"),
        ({"allOf": [{"type": "integer"}, {"exclusiveMinimum": 2}]}, "3"),
        ({"minimum": 3}, '"no number"'),
        ({"type": "number", "minimum": 0.1, "maximum": 0.3}, "0.1"),
        ({"type": "number", "minimum": 0.1, "maximum": 0.3}, "0.3"),
    ],
)
def test_bounds_of_common_types_are_served(vocabulary: Vocabulary, schema: dict[str, Any], text: str) -> None:
    check_json(text, schema)
    assert admits(vocabulary, schema, text)


def test_a_bound_that_is_no_number_stays() -> None:
    for bound in ("3", True, None, [1], float("inf")):
        assert as_read({"minimum": bound, "maximum": 3}) == {"minimum": bound, "maximum": 3}


@given(st.integers(-(2**60), 2**60), st.integers(0, 25))
def test_decimals_read_as_doubles_in_their_order(number: int, digits: int) -> None:
    """On which the module rests."""
    exact = Decimal(number).scaleb(-digits)
    nearest = float(exact)
    assert float(exact + Decimal(1).scaleb(-digits)) >= nearest


def admits(vocabulary: Vocabulary, schema: dict[str, Any], text: str) -> bool:
    matcher = vocabulary.matcher_of_schema(schema, field="schema")
    ids = [vocabulary.byte_ids[value] for value in text.encode()]
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()
