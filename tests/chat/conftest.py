"""A vocabulary small enough to train in a moment, and multilingual enough to have merges in every script."""

import pytest

from chogori.chat import SAMPLES, Tokenizer

CODE = """
def area(width: float, height: float = 1.0) -> float:
\t'''It's the area; doesn't check 12345 or 3.14159.'''
    if width < 0 or height < 0:
        raise ValueError(f"negative: {width!r} × {height!r}")
    return width * height  # мир, ñandú, İstanbul, 한국어, ไทย, हिन्दी 🙂🏔️👩‍👩‍👧
"""


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [*SAMPLES.values(), CODE] * 2


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return Tokenizer.train(texts, vocab_size=900)
