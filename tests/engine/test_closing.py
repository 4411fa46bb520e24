"""A JSON text that was begun can be ended, from wherever it stands, within the tokens that there are."""

import json
import random
from typing import Any

import llguidance
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chogori.engine.closing import Closer
from chogori.engine.json_place import JsonPlace
from chogori.engine.vocabulary import Vocabulary
from tests.engine.constraint_driving import check_json
from tests.engine.random_schemas import random_tool_schema

PLENTY = 4096
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


@pytest.fixture(scope="module")
def closer(vocabulary: Vocabulary) -> Closer:
    return Closer(vocabulary)


def begun(vocabulary: Vocabulary, schema: dict[str, Any], data: bytes = b"") -> tuple[llguidance.LLMatcher, JsonPlace]:
    """A matcher and a follower of strings that have read `data`."""
    matcher = vocabulary.matcher_of_schema(schema, field="schema")
    assert matcher.consume_tokens([vocabulary.byte_ids[value] for value in data]), "not the beginning of such a text"
    strings = JsonPlace()
    strings.feed(data)
    return matcher, strings


def text_of(vocabulary: Vocabulary, data: bytes, ending: list[int]) -> str:
    return (data + vocabulary.tokenizer.decode_bytes(ending)).decode()


@settings(max_examples=60)
@given(document=DOCUMENTS, data=st.data())
def test_any_document_can_be_ended_after_any_byte(
    vocabulary: Vocabulary, closer: Closer, document: Any, data: st.DataObject
) -> None:
    """Each thing that is open takes at most its closing bytes and, for a key without a value, that too."""
    whole = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    matcher, strings = begun(vocabulary, {}, cut)
    ending = closer.ending(matcher, strings, PLENTY)
    assert ending is not None
    assert len(ending) <= len(whole) + 8
    json.loads(text_of(vocabulary, cut, ending))


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), num_tokens=st.integers(0, 60))
def test_random_beginnings_end_in_what_their_schema_allows(
    vocabulary: Vocabulary, closer: Closer, seed: int, num_tokens: int
) -> None:
    """The ending is whole, no longer than asked, the same in every search, and a search changes nothing."""
    schema = random_tool_schema(random.Random(seed))
    matcher, strings = begun(vocabulary, schema)
    tails = closer.tails(schema)
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < num_tokens and (allowed := np.flatnonzero(vocabulary.allowed_by(matcher))).size:
        token = int(rng.choice(allowed))
        after, followed = matcher.deep_copy(), strings.copy()
        assert after.consume_token(token)
        followed.feed(vocabulary.tokenizer.decode_bytes([token]))
        if closer.ending(after, followed, PLENTY, tails=tails) is None:
            break  # such a token is not taken: `accept` puts the ending known before it in its place
        matcher, strings = after, followed
        tokens.append(token)
    mask = vocabulary.allowed_by(matcher)
    ending = closer.ending(matcher, strings, PLENTY, tails=tails)
    assert ending is not None
    assert np.array_equal(vocabulary.allowed_by(matcher), mask)
    assert closer.ending(matcher, strings, PLENTY, tails=tails) == ending
    assert closer.ending(matcher, strings, len(ending), tails=tails) == ending
    check_json(text_of(vocabulary, vocabulary.tokenizer.decode_bytes(tokens), ending), schema)
    shorter = closer.ending(matcher, strings, len(ending) - 1, tails=tails) if ending else None
    assert shorter is None or len(shorter) < len(ending)
    # What remains of an ending is one, whether it is followed or a token of no consequence comes between.
    if len(ending) > 1:
        assert matcher.consume_token(ending[0])
        strings.feed(vocabulary.tokenizer.decode_bytes(ending[:1]))
        assert closer.ending(matcher, strings, len(ending) - 1, known=ending) == ending[1:]


OWING: dict[str, tuple[dict[str, Any], bytes]] = {
    "a star before the letter wanted": ({"type": "string", "pattern": "^a*b$"}, b'"aaa'),
    "one of many letters": ({"type": "string", "pattern": "x"}, b'"abc'),
    "something, a sign, something": ({"type": "string", "pattern": ".@."}, b'"'),
    "an extension behind anything": ({"type": "string", "pattern": r"\.pdf$"}, b'"report.p'),
    "one of two extensions": ({"type": "string", "pattern": r"^.{3,}\.(jpe?g|png)$"}, b'"report.p'),
    "a domain": ({"type": "string", "pattern": r"^[^@]+@example\.com$", "minLength": 40}, b'"me'),
    "a group that need not be, begun": ({"type": "string", "pattern": "^a(,b[^c]*cd)*$"}, b'"a,bxyz'),
    "a quoted word": ({"type": "string", "pattern": r'"\\$'}, b'"'),
    "two letters in order": ({"type": "string", "pattern": "q.*z"}, b'"'),
    "a letter of no alphabet": ({"type": "string", "pattern": "日本"}, b'"abc'),
    "the middle of a character": ({"type": "string"}, '"é'.encode()[:-1]),
    "an escape": ({"type": "string"}, b'"\\'),
    "half an escape by number": ({"type": "string"}, b'"\\u00'),
    "many characters": ({"type": "string", "minLength": 3000}, b'"abc'),
    "many digits": ({"type": "string", "pattern": "^[0-9]{900}$"}, b'"12'),
    "many items": ({"type": "array", "minItems": 700, "items": {"type": "boolean"}}, b"[tr"),
    "the longer of two choices": ({"enum": ["a", "b" * 1500]}, b'"b'),
    "one of ten thousand choices": ({"enum": [f"choice {i}" for i in range(10_000)]}, b'"choice 99'),
    "a multiple": ({"type": "integer", "multipleOf": 97}, b"1000"),
    "a number within narrow bounds": ({"type": "number", "minimum": 0.123456, "maximum": 0.123457}, b"0"),
    "a sign": ({"type": "integer"}, b"-"),
    "an exponent": ({}, b"1.5e-"),
    "many levels": ({}, b'{"a":[' * 400),
    "levels that each owe a text": (
        {
            "type": "object",
            "properties": {
                "in": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
                "by": {"type": "string", "minLength": 9},
            },
            "required": ["in", "by"],
            "additionalProperties": False,
        },
        b'{"in":' * 60,
    ),
    "a key that must follow": (
        {"type": "object", "properties": {"a": {}, "Größe 日本": {"const": "é"}}, "required": ["Größe 日本"]},
        b'{"a":[1,',
    ),
}


@pytest.mark.parametrize("name", OWING)
def test_an_ending_is_found_for(vocabulary: Vocabulary, closer: Closer, name: str) -> None:
    schema, data = OWING[name]
    matcher, strings = begun(vocabulary, schema, data)
    ending = closer.ending(matcher, strings, PLENTY, tails=closer.tails(schema))
    assert ending is not None
    check_json(text_of(vocabulary, data, ending), schema)


@pytest.mark.parametrize(
    ("schema", "data", "shortest"),
    [
        ({"type": "string"}, b'"abc', 1),
        ({"type": "array"}, b"[[1,2]", 1),
        ({"type": "array", "items": {"type": "array"}}, b"[[[", 3),
        ({"type": "object"}, b'{"a":[1', 2),
        ({"type": "string", "minLength": 5}, b'"ab', 4),
        ({"type": "integer"}, b"12", 0),
    ],
)
def test_where_it_can_be_counted_the_ending_is_the_shortest(
    vocabulary: Vocabulary, closer: Closer, schema: dict[str, Any], data: bytes, shortest: int
) -> None:
    matcher, strings = begun(vocabulary, schema, data)
    ending = closer.ending(matcher, strings, shortest)
    assert ending is not None
    assert len(ending) == shortest
    assert not shortest or closer.ending(matcher, strings, shortest - 1) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"in": {"$ref": "#"}}, "required": ["in"]},
        {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
    ],
)
def test_what_never_ends_has_no_ending(vocabulary: Vocabulary, closer: Closer, schema: dict[str, Any]) -> None:
    assert closer.ending(*begun(vocabulary, schema), 300) is None
