"""The choice of a token against its definitions, written out plainly in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from chogori.chat.completer import Sampling
from chogori.engine.sampling import Logits, TokenSampler
from chogori.engine.vocabulary import Mask

ROWS = 12
# Eighths: sums and quotients by 2 are exact, and equal logits occur.
logits_of_a_row = st.lists(st.integers(-40, 40), min_size=ROWS, max_size=ROWS).map(
    lambda xs: np.array(xs, dtype=np.float32) / np.float32(8)
)
masks = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(np.array).filter(lambda mask: bool(mask.any()))
everything: Mask = np.ones(ROWS, dtype=np.bool_)


def sampler(prompt: tuple[int, ...] = (), choice: int = 0, **settings: Any) -> TokenSampler:
    return TokenSampler(Sampling(**settings), prompt, choice=choice, num_rows=ROWS)


def drawn(logits: Logits, allowed: Mask, count: int, **settings: Any) -> list[int]:
    source = sampler(seed=0, **settings)
    return [source.choose(logits, allowed) for _ in range(count)]


def kept(
    logits: Logits, allowed: Mask, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> dict[int, float]:
    """The tokens that may be drawn and their probabilities: one definition after the other, over a sorted list."""
    ranked = sorted((i for i in range(ROWS) if allowed[i]), key=lambda i: (-logits[i], i))[:top_k]
    weights = {i: math.exp((float(logits[i]) - float(logits[ranked[0]])) / temperature) for i in ranked}
    likely = {i: w for i, w in weights.items() if w >= min_p}
    total, before, result = sum(likely.values()), 0.0, dict[int, float]()
    for i, weight in likely.items():
        if before / total >= top_p:
            break
        result[i] = weight
        before += weight
    return {i: weight / sum(result.values()) for i, weight in result.items()}


@given(logits=logits_of_a_row, allowed=masks)
def test_temperature_zero_takes_the_likeliest_allowed_token(logits: Logits, allowed: Mask) -> None:
    best = max((i for i in range(ROWS) if allowed[i]), key=lambda i: (logits[i], -i))
    assert sampler(temperature=0).choose(logits, allowed) == best


@given(
    logits=logits_of_a_row,
    allowed=masks,
    temperature=st.sampled_from([0.25, 1.0, 2.0]),
    top_k=st.integers(1, ROWS + 2),
    top_p=st.floats(0.05, 1.0),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
)
def test_only_tokens_within_every_limit_are_drawn_and_each_of_them_can_be(
    logits: Logits, allowed: Mask, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Draws are made at the middle and just inside both ends of every token's share of the unit interval."""
    expected = kept(logits, allowed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ranked = sorted((i for i in range(ROWS) if allowed[i]), key=lambda i: (-logits[i], i))
    if top_k < len(ranked):
        # Which of several equals are the last of the top k is nobody's business.
        assume(logits[ranked[top_k - 1]] != logits[ranked[top_k]])
    # Nor is on which side of a limit a token falls whose share differs from it by a rounding.
    for limit in np.cumsum(
        list(kept(logits, allowed, temperature=temperature, top_k=top_k, top_p=1.0, min_p=min_p).values())
    ):
        assume(abs(limit - top_p) > 1e-9 or top_p == 1.0)
    source = sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0)
    start = 0.0
    for token, share in expected.items():
        for place in (start + 1e-9 * share, start + share / 2, start + share * (1 - 1e-6)):
            source._generator = Fixed(place)  # pyright: ignore[reportAttributeAccessIssue]
            assert source.choose(logits, allowed) == token
        start += share
    assert start == pytest.approx(1)


class Fixed:
    """A source of random numbers that returns one number."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self) -> float:
        return self._value


def test_draws_come_as_often_as_their_probabilities_say() -> None:
    """Pearson's χ² over n draws of k kinds has mean k − 1 and variance 2(k − 1): six deviations are allowed."""
    logits = np.linspace(0, 3, ROWS, dtype=np.float32)
    weights: NDArray[np.float64] = np.exp(logits.astype(np.float64) / 0.8)
    expected = 20_000 * weights / weights.sum()
    counts = np.bincount(drawn(logits, everything, 20_000, temperature=0.8), minlength=ROWS)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < (ROWS - 1) + 6 * math.sqrt(2 * (ROWS - 1))


def test_a_seed_reproduces_its_draws_and_choices_differ() -> None:
    logits = np.zeros(ROWS, dtype=np.float32)

    def series(seed: int | None, choice: int) -> list[int]:
        source = sampler(seed=seed, choice=choice)
        return [source.choose(logits, everything) for _ in range(50)]

    assert series(7, 0) == series(7, 0)
    assert series(-1, 2) == series(-1, 2)
    others = [series(7, 1), series(8, 0), series(-7, 0), series(None, 0), series(None, 0)]
    for i, one in enumerate(others):
        assert one != series(7, 0)
        assert one not in others[:i]


@given(logits=logits_of_a_row, noted=st.lists(st.integers(0, ROWS - 1), max_size=8), at=st.integers(0, ROWS - 1))
def test_presence_and_frequency_are_subtracted_as_openai_defines(logits: Logits, noted: list[int], at: int) -> None:
    """Seen through greedy choice: the token at `at` wins against another exactly where the formula says so."""
    source = sampler(prompt=(0, 1, 2), temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    for token in noted:
        source.note(token)
    adjusted = [float(logits[i]) - 0.25 * noted.count(i) - 0.5 * (i in noted) for i in range(ROWS)]
    assert_order(source, logits, adjusted, at)


@given(
    logits=logits_of_a_row,
    prompt=st.lists(st.integers(0, ROWS - 1), max_size=4),
    noted=st.lists(st.integers(0, ROWS - 1), max_size=4),
    at=st.integers(0, ROWS - 1),
    penalty=st.sampled_from([0.5, 2.0]),
)
def test_repetition_divides_positive_and_multiplies_negative_logits_once(
    logits: Logits, prompt: list[int], noted: list[int], at: int, penalty: float
) -> None:
    source = sampler(prompt=tuple(prompt), temperature=0, repetition_penalty=penalty)
    for token in noted:
        source.note(token)
    adjusted = [
        float(x) if i not in {*prompt, *noted} else float(x) / penalty if x > 0 else float(x) * penalty
        for i, x in enumerate(logits)
    ]
    assert_order(source, logits, adjusted, at)


@given(
    logits=logits_of_a_row,
    bias=st.dictionaries(st.integers(-2, ROWS + 2), st.sampled_from([-100.0, -0.5, 2.25, 100.0])),
)
def test_bias_is_added_and_ids_beyond_the_head_have_none(logits: Logits, bias: dict[int, float]) -> None:
    source = sampler(temperature=0, logit_bias=bias)
    adjusted = [float(x) + bias.get(i, 0.0) for i, x in enumerate(logits)]
    for at in range(ROWS):
        assert_order(source, logits, adjusted, at)


def assert_order(source: TokenSampler, logits: Logits, adjusted: list[float], at: int) -> None:
    for other in range(ROWS):
        pair = np.zeros(ROWS, dtype=np.bool_)
        pair[[at, other]] = True
        assert source.choose(logits, pair) == max(at, other, key=lambda i: (adjusted[i], -i))


def test_adjusting_leaves_the_logits_themselves_alone() -> None:
    logits = np.arange(ROWS, dtype=np.float32)
    source = sampler(prompt=(3,), repetition_penalty=2.0, presence_penalty=1.0, logit_bias={1: 5.0})
    source.note(4)
    source.choose(logits, everything)
    assert np.array_equal(logits, np.arange(ROWS))


@given(allowed=masks, bias=st.sampled_from([0.0, 100.0]), settings=st.sampled_from([{}, {"top_k": 1}, {"top_p": 0.01}]))
def test_a_barred_token_is_never_drawn_however_likely(allowed: Mask, bias: float, settings: dict[str, Any]) -> None:
    logits = np.where(allowed, np.float32(-1e4), np.float32(1e4)).astype(np.float32)
    barred = {int(i): bias for i in np.flatnonzero(~allowed)}
    assert all(allowed[token] for token in drawn(logits, allowed, 8, logit_bias=barred, **settings))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_that_the_model_rules_out_are_not_drawn(temperature: float) -> None:
    logits = np.full(ROWS, -np.inf, dtype=np.float32)
    logits[[2, 5]] = (1.0, 0.0)
    assert set(drawn(logits, everything, 50, temperature=temperature, presence_penalty=1.0)) <= {2, 5}


@given(
    logits=logits_of_a_row,
    count=st.integers(0, ROWS),
    token=st.integers(0, ROWS - 1),
    shift=st.sampled_from([0.0, 1e4]),
)
def test_likelihoods_are_the_models_own_and_sorted(logits: Logits, count: int, token: int, shift: float) -> None:
    """Neither penalties nor temperature nor a common shift, which double precision would not survive as exp(1e4)."""
    logits = (logits + np.float32(shift)).astype(np.float32)
    source = sampler(logprobs=True, top_logprobs=count, temperature=0.3, logit_bias={token: 50.0})
    likelihood = source.likelihood(logits, token)
    total = math.fsum(math.exp(float(x) - shift) for x in logits)
    assert likelihood.logprob == pytest.approx(float(logits[token]) - shift - math.log(total), abs=1e-9)
    assert len(likelihood.top) == count
    logprobs = [logprob for _, logprob in likelihood.top]
    assert logprobs == sorted(logprobs, reverse=True)
    assert all(source.likelihood(logits, i).logprob == logprob for i, logprob in likelihood.top)
    rest = set(range(ROWS)) - {i for i, _ in likelihood.top}
    assert all(float(logits[i]) <= float(logits[j]) for i in rest for j, _ in likelihood.top)
    if count == ROWS:
        assert math.fsum(math.exp(logprob) for logprob in logprobs) == pytest.approx(1)
