"""Scales change where a reader expects it, and three digits remain."""

import pytest

from chogori.cli.quantities import bytes_in_words, count_in_words, duration_in_words, operations_in_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count_in_words(1_026_408_209_408), "1.03 T"),
        (count_in_words(225_000), "225 k"),
        (count_in_words(999), "999"),
        (operations_in_words(2.05e11), "205 G"),
        (operations_in_words(3.185e24), "3,185 Z"),
        (bytes_in_words(500), "500 bytes"),
        (bytes_in_words(14.5e12), "14.5 TB"),
        (duration_in_words(59), "59 seconds"),
        (duration_in_words(90), "1.5 minutes"),
        (duration_in_words(2 * 365.25 * 86400), "2 years"),
    ],
)
def test_in_words(text: str, expected: str) -> None:
    assert text == expected
