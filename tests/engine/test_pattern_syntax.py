"""Patterns mean what they mean in JSON schema, by Python's regular expressions where these agree with ECMAScript's."""

import json
import re
import warnings

import pytest

from chogori.engine.pattern_syntax import in_rust
from chogori.engine.vocabulary import Vocabulary

TEXTS = ["a", "z", ":]", "a]", "[", "]", "&", "b", "+", ",", "-", "~", "<", ">", "\\", "[]", "x<y>", "^", "/", "é", ""]
PATTERNS = [
    r"^[[:alpha:]]$",
    r"^[^[\]]+$",
    r"^[a[b]+$",
    r"^[a&&b]$",
    r"^[+--]$",
    r"^[~~a]$",
    r"^[\[\]]+$",
    r"^[\\<]$",
    r"^\w\<\w\>$",
    r"^[\-&\&]$",
    r"^[^a-z]$",
    r"\[",
    r"^\/$",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_admits_what_it_matches(vocabulary: Vocabulary, pattern: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that brackets may come to mean what they mean in Rust
        expression = re.compile(pattern)
    matched = {text for text in TEXTS if expression.search(text)}
    assert matched
    matcher = vocabulary.matcher_of_schema({"type": "string", "pattern": pattern}, field="schema")
    for text in TEXTS:
        ids = [vocabulary.byte_ids[value] for value in json.dumps(text, ensure_ascii=False).encode()]
        assert (matcher.validate_tokens(ids) == len(ids)) == (text in matched), text


def test_patterns_of_keys_are_read_alike(vocabulary: Vocabulary) -> None:
    schema = {"type": "object", "patternProperties": {"^[[:a]$": {"type": "null"}}, "additionalProperties": False}
    matcher = vocabulary.matcher_of_schema(schema, field="schema")
    for text, admitted in (('{"[":null}', True), ('{":":null}', True), ('{"b":null}', False)):
        ids = [vocabulary.byte_ids[value] for value in text.encode()]
        assert (matcher.validate_tokens(ids) == len(ids)) == admitted


@pytest.mark.parametrize("pattern", ["", r"^a*$", r"^[a-z\d_-]+$", r"\\", "\\", "[", r"^(a|b)[^]]$"])
def test_what_both_mean_alike_stays(pattern: str) -> None:
    assert in_rust(pattern) == pattern
