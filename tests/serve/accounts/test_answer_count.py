from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.completer import ContentDelta, Event, Finished, Started, ToolCallBegin, ToolCallDelta, Usage
from chogori.chat.language_samples import SAMPLES
from chogori.chat.token_estimate import tokens_of_four_bytes
from chogori.chat.tokenizer import Tokenizer
from chogori.serve.accounts.answer_count import TAIL_CHARS, AnswerCount, TextCount


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SAMPLES.values(), vocab_size=1024)


@given(st.lists(st.text(min_size=1, max_size=700), max_size=8))
def test_a_text_that_grows_has_the_tokens_of_the_whole(pieces: list[str]) -> None:
    count = TextCount(tokens_of_four_bytes)
    total, whole = 0, ""
    for piece in pieces:
        total += count.add(piece)
        whole += piece
        assert total == tokens_of_four_bytes(whole)


@pytest.mark.parametrize("seed", range(5))
def test_it_does_with_a_real_tokenizer_in_every_language(tokenizer: Tokenizer, seed: int) -> None:
    dice = random.Random(seed)
    text = " ".join(dice.sample(list(SAMPLES.values()), len(SAMPLES)))
    count = TextCount(lambda part: len(tokenizer.encode(part)))
    at, total = 0, 0
    while at < len(text):
        step = dice.randrange(1, 12)
        total += count.add(text[at : at + step])
        at += step
    assert total == len(tokenizer.encode(text))


def test_a_long_answer_is_not_counted_from_the_start_each_time() -> None:
    num_chars = 0

    def counted(text: str) -> int:
        nonlocal num_chars
        num_chars += len(text)
        return tokens_of_four_bytes(text)

    count = TextCount(counted)
    for _ in range(20_000):
        count.add("word ")
    # The whole text each time would be 20,000² × 5 / 2 = 1e9 characters.
    assert num_chars < 20_000 * TAIL_CHARS * 2


def test_choices_and_calls_count_by_themselves_and_usage_has_the_last_word() -> None:
    count = AnswerCount(tokens_of_four_bytes)
    events: list[tuple[Event, int]] = [
        (Started(prompt_tokens=9, cached_tokens=4), 0),
        (ContentDelta(choice=0, text="abcd"), 1),
        (ContentDelta(choice=1, text="ab"), 2),
        (ContentDelta(choice=1, text="cd"), 2),
        (ContentDelta(choice=1, text=""), 2),
        (ToolCallBegin(choice=0, index=0, id="functions.f:0", name="weather"), 4),
        (ToolCallDelta(choice=0, index=0, arguments="{}"), 5),
        (Finished(choice=0, reason="tool_calls"), 5),
        (Usage(prompt_tokens=10, cached_tokens=5, completion_tokens=30), 30),
    ]
    for event, completion_tokens in events:
        before = count.completion_tokens
        has_text = count.observe(event)
        assert count.completion_tokens == completion_tokens, event
        assert has_text or isinstance(event, Usage) or count.completion_tokens == before
    assert (count.prompt_tokens, count.cached_tokens, count.total) == (10, 5, 40)
