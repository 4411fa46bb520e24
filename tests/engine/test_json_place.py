"""A follower of JSON text knows at every byte what is open, against the parsers' own reader of partial JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.json_prefix import JsonPrefix
from chogori.engine.json_place import MAX_DEPTH, MAX_DIGITS, JsonPlace

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


@given(document=DOCUMENTS, ascii_only=st.booleans(), step=st.integers(1, 5))
def test_strings_are_told_from_structure_at_every_byte(document: Any, ascii_only: bool, step: int) -> None:
    """Against the reader of partial JSON that the parsers use, however the bytes are cut into pieces."""
    text = json.dumps(document, ensure_ascii=ascii_only)
    reader, place, pieces = JsonPrefix(), JsonPlace(), JsonPlace()
    data = text.encode()
    for start in range(0, len(data), step):
        pieces.feed(data[start : start + step])
    for character in text:
        reader.feed(character)
        before = place.copy()
        place.feed(character.encode())
        assert place.inside == reader.in_string
        before.feed(character.encode())
        assert before.inside == place.inside, "a copy goes on as its original does"
    assert not place.inside
    assert not pieces.inside


def test_a_copy_is_at_the_same_escape() -> None:
    place = JsonPlace()
    place.feed(b'"\\')
    copy = place.copy()
    copy.feed(b'"')
    assert copy.inside
    assert place.inside
    place.feed(b'\\"')
    assert not place.inside
    assert copy.inside, "what the original reads does not reach the copy"


DEEPEST = '[{"[":' * (MAX_DEPTH // 2)


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        (DEEPEST, True),
        (DEEPEST + '"[[{{' + "1" * 2 * MAX_DIGITS, True),
        (DEEPEST + "[", False),
        (DEEPEST + "[]", True),
        (DEEPEST + "1}]" + "}]" * 3 + "[" * 8, True),
        ("1" * MAX_DIGITS, True),
        ("-1" + "0" * MAX_DIGITS, False),
        (f"[{'1' * MAX_DIGITS},{'1' * MAX_DIGITS}", True),
        (f"{'1' * MAX_DIGITS}.{'1' * MAX_DIGITS}", True),
    ],
)
def test_what_readers_give_up_on_is_told(text: str, readable: bool) -> None:
    place = JsonPlace()
    place.feed(text.encode())
    assert place.is_readable == readable
    assert place.copy().is_readable == readable


def test_readers_take_what_is_readable() -> None:
    json.loads(DEEPEST + "1" * MAX_DIGITS + "}]" * (MAX_DEPTH // 2))
    assert float("1" + "0" * (MAX_DIGITS - 100)) < float("inf"), "every double can be written"
