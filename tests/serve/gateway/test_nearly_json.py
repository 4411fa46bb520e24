"""JSON with slips of spelling: the same value strictly written, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.serve.gateway.nearly_json import strictly_written

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(["True", "it's", "a, ]", "\\'", "'"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab'\"", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_json_comes_back_as_it_was(value: Any, indent: int | None, is_ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    assert strictly_written(text) == text


@given(VALUES)
def test_pythons_way_to_write_a_value_says_the_same(value: Any) -> None:
    """Python writes most of it as JSON does; what it escapes otherwise is refused, never misread."""
    try:
        written = strictly_written(repr(value))
    except ValueError:
        assert "\\x" in repr(value) or "\\U" in repr(value) or "\\a" in repr(value)
    else:
        assert json.loads(written) == value


@given(st.dictionaries(st.text("ab", max_size=3), VALUES, min_size=1, max_size=3), st.integers(0, 500))
def test_a_text_that_was_cut_off_is_not_closed(value: Any, length: int) -> None:
    text = json.dumps(value)
    with pytest.raises(ValueError, match=r"\S"):
        strictly_written(text[: min(length, len(text) - 1)])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"a": 1.10,}', '{"a": 1.10}'),
        ('{"a": [1, 2, ], }', '{"a": [1, 2 ] }'),
        ("{'a': \"it's\", 'b': 'say \"hi\"'}", '{"a": "it\'s", "b": "say \\"hi\\""}'),
        ('{"a": True, "b": None, "c": "True,]"}', '{"a": true, "b": null, "c": "True,]"}'),
        ('{"a": "two\nlines"}', '{"a": "two\\nlines"}'),
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        ('{"a": 1}}', '{"a": 1}'),
        ('{"a": 1}{"a": 1}', '{"a": 1}'),
        ('{"a": 1}<|tool_call_end|><|tool_calls_section_end|>', '{"a": 1}'),
    ],
)
def test_slips(text: str, written: str) -> None:
    assert strictly_written(text) == written


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_long_text_that_was_cut_off_is_read_once(quote: str) -> None:
    """A program in a string, full of quotes, of which the end is missing: quadratic time would be minutes here."""
    with pytest.raises(ValueError, match=r"\S"):
        strictly_written("{" + quote + "code" + quote + ": " + quote + ("\\" + quote) * 500_000)


@pytest.mark.parametrize(
    "text",
    ["", "city", "{a: 1}", '{"a": 1', '{"a": "b', '{"a": 1}{"a": 2}', '{"a": 1} and so on', '{"a": NaN}', "[" * 5000,
     '{"a": \'\\x41\'}'],
)  # fmt: skip
def test_what_would_need_a_guess_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        strictly_written(text)
