"""JSON followed piece by piece: a valid text is taken whole, any other up to its first wrong character."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.json_prefix import JsonPrefix

values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(value=values, ascii_only=st.booleans(), indent=st.sampled_from([None, 0, 2]), data=st.data())
def test_json_is_taken_whole_in_any_pieces(
    value: object, ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    cut = data.draw(st.integers(0, len(text)))
    prefix = JsonPrefix()
    assert prefix.feed(text[:cut]) == cut
    assert prefix.feed(text[cut:]) == len(text) - cut
    assert not prefix.in_string
    assert not prefix.is_broken
    assert prefix.is_complete
    assert JsonPrefix().feed(text + "\n \n?") == len(text) + 3


@given(value=values, data=st.data())
def test_it_knows_when_it_stands_in_a_string(value: object, data: st.DataObject) -> None:
    text = json.dumps(value)
    cut = data.draw(st.integers(0, len(text)))
    prefix = JsonPrefix()
    prefix.feed(text[:cut])
    # In valid JSON, escapes stand in strings only; so an odd number of other quotes means an open string.
    is_odd = False
    escaped = False
    for character in text[:cut]:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            is_odd = not is_odd
    assert prefix.in_string == is_odd


@pytest.mark.parametrize(
    ("text", "num_taken"),
    [
        ('{"a" "b"}', 5), ('{"a"}', 4), ("{a: 1}", 1), ("{,}", 1), ('{"a": }', 6), ('{"a": 1,}', 8), ("[1 2]", 3),
        ("[1,]", 3), ("[1}", 2), ('{"a": 1]', 7), ("}", 0), ("1 2", 2), ('"a" x', 4), ("[] ,", 3), ("'a'", 0),
        ('{"a": "b"c', 9), ('"\\""x', 4), ("", 0), ('"\n"', 3), ('{"a":{"b":[[]]}}}', 16),
    ],
)  # fmt: skip
def test_it_stops_at_the_first_wrong_character(text: str, num_taken: int) -> None:
    whole, pieces = JsonPrefix(), JsonPrefix()
    assert whole.feed(text) == num_taken
    assert sum(pieces.feed(character) for character in text) == num_taken
    assert whole.is_broken == pieces.is_broken == (num_taken < len(text))
    assert whole.feed("[]") == (0 if whole.is_broken else JsonPrefix().feed(text + "[]") - len(text))


def test_strings_are_counted_and_their_ends_known() -> None:
    prefix = JsonPrefix()
    for text, num_strings, in_string, at_string_end in (
        ('{"a', 1, True, False),
        ('"', 1, False, True),
        (" ", 1, False, True),
        (":", 1, False, False),
        ('["x\\"', 2, True, False),
        ('", 1', 2, False, False),
    ):
        prefix.feed(text)
        assert (prefix.num_strings, prefix.in_string, prefix.at_string_end) == (num_strings, in_string, at_string_end)


@pytest.mark.parametrize("text", ["", " ", "{", '"a', '{"a": 1', "[1,", '{"a": [1]', '{"a":', "}", "[] x"])
def test_an_unfinished_value_is_not_complete(text: str) -> None:
    prefix = JsonPrefix()
    prefix.feed(text)
    assert not prefix.is_complete
