"""Examples of patterns satisfy them, by Python's own regular expressions."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.engine.pattern_examples import MAX_TAILS, pattern_tails

PATTERNS = [
    r"\.pdf$",
    r"^https?://.*\.git$",
    r"\.(jpe?g|png)$",
    r"^\d{4}-\d{2}-\d{2}$",
    r"^(\+\d{1,3})?\d{10}$",
    r"^[^\s@]+@[^\s@]+\.[a-z]{2,}$",
    r"^.{3,}-(dev|prod)$",
    r"^(?:[01]\d|2[0-3]):[0-5]\d$",
    r"^(?P<year>\d+)\D\W\S\s\w+?$",
    r"(?i:abc)x",
    r"[a-]\]\x41\u0042\t",
    r"^[^a-zA-Z0-9 \-_./:@]$",
    r"^[é-ü]日本$",
    r'"\\',
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_examples_satisfy_their_pattern(pattern: str) -> None:
    tails = pattern_tails({"type": "array", "items": [{"pattern": pattern}]})
    longest = json.loads(b'"' + tails[-1])
    assert re.search(pattern, longest)
    assert tails[0] == b'"'
    assert all(tails[-1].endswith(tail) for tail in tails) or "|" in pattern or "?" in pattern or "*" in pattern


def test_each_alternative_has_an_example() -> None:
    tails = pattern_tails({"patternProperties": {"^(one|two|three)$": {}}})
    assert {b'one"', b'two"', b'three"'} <= set(tails)


def test_what_may_be_left_out_is_in_one_example() -> None:
    assert {b'a"', b'a,b"'} <= set(pattern_tails({"pattern": "^a(,b)*$"}))


@pytest.mark.parametrize("pattern", ["(?=a)b", "(", "[", "a{x}", "a{300}", "(" * 60 + "a" + ")" * 60, "\\", "[b-a]"])
def test_of_what_is_not_understood_there_is_no_example(pattern: str) -> None:
    assert pattern_tails({"pattern": pattern}) == []


@given(st.text(alphabet='ab01.^$*+?{}[]()|\\-,:=<>P"', max_size=20) | st.text())
def test_any_text_may_stand_as_a_pattern(pattern: str) -> None:
    tails = pattern_tails({"pattern": pattern})
    assert len(tails) <= MAX_TAILS
    assert all(tail.endswith(b'"') for tail in tails)
    assert tails == sorted(tails, key=lambda tail: (len(tail), tail))


def test_a_schema_without_patterns_has_no_tails() -> None:
    assert pattern_tails({"type": "object", "properties": {"a": {"type": "string", "minLength": 3}}}) == []
