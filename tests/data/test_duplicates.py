"""MinHash against the Jaccard similarity it estimates, and what counts as equal."""

import random
import re

import pytest

from chogori.data.document import Document
from chogori.data.duplicates import DuplicateFilter


def words(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("abcdefghij", k=5)) for _ in range(count)]


def shingles(text: str) -> set[tuple[str, ...]]:
    split = re.findall(r"\w+", text)
    return {tuple(split[i : i + 5]) for i in range(len(split) - 4)}


def test_white_space_and_unicode_form_do_not_make_a_text_new() -> None:
    duplicates = DuplicateFilter(1.0)
    assert duplicates.check(Document("a", "Caf\u00e9 au\n\tlait")) is None
    found = duplicates.check(Document("b", " Cafe\u0301 au lait\r\n"))
    assert found is not None
    assert (found.name, found.kept, found.exact, found.similarity) == ("b", "a", True, 1.0)
    assert duplicates.check(Document("c", "Caf\u00e9 au lait!")) is None


@pytest.mark.parametrize("num_changed", [2, 5, 10, 15, 20])
def test_estimate_is_near_the_jaccard_similarity(num_changed: int) -> None:
    """128 orderings: the standard error is √(J(1−J)/128), at most 0.045; four of them are allowed."""
    original = words(1000, seed=1)
    changed = list(original)
    for place, word in zip(range(7, 1000, 1000 // num_changed), words(num_changed, seed=2), strict=False):
        changed[place] = word
    first, second = " ".join(original), " ".join(changed)
    jaccard = len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))
    duplicates = DuplicateFilter(0.01)
    duplicates.check(Document("a", first))
    found = duplicates.check(Document("b", second))
    assert found is not None
    assert found.similarity == pytest.approx(jaccard, abs=4 * (jaccard * (1 - jaccard) / 128) ** 0.5)


def test_threshold_decides() -> None:
    original = words(1000, seed=3)
    slightly = [*original[:500], "changed", *original[501:]]
    half = original[:500] + words(500, seed=4)
    duplicates = DuplicateFilter(0.8)
    assert duplicates.check(Document("a", " ".join(original))) is None
    found = duplicates.check(Document("b", " ".join(slightly)))
    assert found is not None
    assert (found.kept, found.exact) == ("a", False)
    assert duplicates.check(Document("c", " ".join(half))) is None
    assert DuplicateFilter(1.0).check(Document("b", " ".join(slightly))) is None


def test_order_of_words_and_cjk_characters_count() -> None:
    """Without the characters of a script that writes no spaces taken singly, one edit would make a new text."""
    sentence = "その山は国境にそびえ、一年のほとんどの間、上の斜面は雲に隠れている。" * 3
    long = "".join(f"{i}番目の文。{sentence[i % 7 :]}" for i in range(20))
    duplicates = DuplicateFilter(0.8)
    duplicates.check(Document("a", long))
    assert duplicates.check(Document("b", long.replace("7番目", "七番目"))) is not None
    reversed_words = " ".join(reversed(words(300, seed=5)))
    duplicates.check(Document("c", " ".join(words(300, seed=5))))
    assert duplicates.check(Document("d", reversed_words)) is None


def test_short_texts_are_only_compared_whole() -> None:
    duplicates = DuplicateFilter(0.5)
    assert duplicates.check(Document("a", "one two three four")) is None
    assert duplicates.check(Document("b", "one two three")) is None


def test_is_deterministic() -> None:
    texts = [" ".join(words(200, seed=n % 7)) + f" end {n % 14}" for n in range(28)]
    runs: list[list[object]] = []
    for _ in range(2):
        duplicates = DuplicateFilter(0.8)
        runs.append([duplicates.check(Document(str(n), text)) for n, text in enumerate(texts)])
    assert runs[0] == runs[1]
    assert sum(found is None for found in runs[0]) == 7
