"""The choice of a token, against a straightforward implementation of each setting and against counted draws."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chogori.chat.completer import Sampling
from chogori.engine.sampling import TokenSampler
from chogori.errors import NonFiniteError

NUM_ROWS = 40
EVERYTHING = np.ones(NUM_ROWS, dtype=np.bool_)

logits_of_rows = st.lists(st.floats(-30, 30, width=32) | st.just(-np.inf), min_size=NUM_ROWS, max_size=NUM_ROWS).map(
    lambda values: np.array(values, dtype=np.float32)
)
masks = st.lists(st.booleans(), min_size=NUM_ROWS, max_size=NUM_ROWS).filter(any).map(np.array)


def sampler_of(prompt: list[int] | None = None, *, choice: int = 0, **fields: Any) -> TokenSampler:
    fields.setdefault("seed", 0)
    return TokenSampler(Sampling(**fields), prompt or [], choice=choice, num_rows=NUM_ROWS)


def chances(
    logits: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    min_p: float = 0.0,
    top_p: float = 1.0,
) -> dict[int, float]:
    """Probability of each token, by the definitions, one token after another, in plain Python."""
    likely = sorted((i for i in range(NUM_ROWS) if allowed[i]), key=lambda i: (-logits[i], i))
    kept = likely[: top_k or NUM_ROWS]
    if logits[kept[0]] == -np.inf:
        weights = dict.fromkeys(kept, 1.0)
    else:
        weights = {i: math.exp((float(logits[i]) - float(logits[kept[0]])) / temperature) for i in kept}
    weights = {i: weight for i, weight in weights.items() if weight >= min_p}
    total, before = sum(weights.values()), 0.0
    nucleus: dict[int, float] = {}
    for i, weight in weights.items():
        if before >= top_p * total:
            break
        nucleus[i] = weight
        before += weight
    return {i: weight / sum(nucleus.values()) for i, weight in nucleus.items()}


@given(logits=logits_of_rows, allowed=masks)
def test_greedy_takes_the_likeliest_of_the_allowed_and_of_equals_the_first(
    logits: NDArray[np.float32], allowed: NDArray[np.bool_]
) -> None:
    best = max(logits[allowed])
    expected = next(i for i in range(NUM_ROWS) if allowed[i] and logits[i] == best)
    assert sampler_of(temperature=0).choose(logits, allowed) == expected


@settings(max_examples=200)
@given(
    logits=logits_of_rows,
    allowed=masks,
    temperature=st.sampled_from([1e-320, 1e-3, 0.3, 0.6, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, NUM_ROWS + 5),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(),
)
def test_only_tokens_that_every_setting_leaves_are_drawn(
    logits: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    temperature: float,
    top_k: int | None,
    min_p: float,
    top_p: float,
    seed: int,
) -> None:
    """Among equals at the edge of top_k any may stay, so a token as likely as one that is left is right too."""
    sampler = sampler_of(seed=seed, temperature=temperature, top_k=top_k, min_p=min_p, top_p=top_p)
    possible = chances(logits, allowed, temperature=temperature, top_k=top_k, min_p=min_p, top_p=top_p)
    scores = {float(logits[i]) for i in possible}
    before = logits.copy()
    for _ in range(10):
        token = sampler.choose(logits, allowed)
        assert allowed[token]
        assert float(logits[token]) in scores
    assert np.array_equal(before, logits), "the model's own logits are reported later"


class Fixed:
    """A source of random numbers that returns one number."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self) -> float:
        return self._value


@given(
    # Eighths within five: few tokens are too rare for a place of their own in the unit interval.
    eighths=st.lists(st.integers(-40, 40), min_size=NUM_ROWS, max_size=NUM_ROWS, unique=True),
    allowed=masks,
    temperature=st.sampled_from([0.6, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, NUM_ROWS + 5),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_every_token_that_is_left_owns_its_probability_of_the_unit_interval(
    eighths: list[int],
    allowed: NDArray[np.bool_],
    temperature: float,
    top_k: int | None,
    min_p: float,
    top_p: float,
) -> None:
    """Likeliest first, each from just inside its beginning to just inside its end, so that none is missing."""
    logits = np.array(eighths, dtype=np.float32) / np.float32(8)
    sampler = sampler_of(temperature=temperature, top_k=top_k, min_p=min_p, top_p=top_p)
    shares = chances(logits, allowed, temperature=temperature, top_k=top_k, min_p=min_p, top_p=top_p)
    start = 0.0
    for token, share in shares.items():
        if share > 1e-6:
            # Sums of 40 doubles in another order differ by less than 1e-13.
            for place in (start + 1e-5 * share, start + share / 2, start + share * (1 - 1e-5)):
                sampler._generator = Fixed(place)  # pyright: ignore[reportAttributeAccessIssue]
                assert sampler.choose(logits, allowed) == token
        start += share


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 2.0, "top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.02, "top_p": 0.9},
    ],
)
def test_draws_are_as_frequent_as_their_probability(settings_: dict[str, Any]) -> None:
    """Pearson's statistic over c tokens is near χ² with c − 1 degrees of freedom: mean c − 1, variance 2(c − 1).

    Six standard deviations above the mean, for one fixed seed: a sampler that favours a token by a tenth of its
    probability is far beyond, since the statistic then grows by draws · 0.01 · p, which is 100 for p = 0.5.
    """
    draws = 20_000
    logits = np.random.default_rng(1).normal(0, 2, NUM_ROWS).astype(np.float32)
    allowed = np.arange(NUM_ROWS) % 5 != 0
    expected = chances(logits, allowed, **settings_)
    sampler = sampler_of(seed=7, **settings_)
    counts = np.bincount([sampler.choose(logits, allowed) for _ in range(draws)], minlength=NUM_ROWS)
    assert set(np.flatnonzero(counts)) <= set(expected)
    # Tokens too rare for the approximation are counted together.
    frequent = [i for i in expected if draws * expected[i] >= 10]
    rare = draws * sum(expected[i] for i in expected if i not in frequent)
    cells = [(counts[i], draws * expected[i]) for i in frequent]
    if rare >= 10:
        cells.append((sum(counts[i] for i in expected if i not in frequent), rare))
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    freedom = len(cells) - 1
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)


@given(
    logits=logits_of_rows.map(lambda row: np.maximum(row, np.float32(-30))),
    prompt=st.lists(st.integers(0, NUM_ROWS - 1), max_size=8),
    produced=st.lists(st.integers(0, NUM_ROWS - 1), max_size=8),
    presence=st.sampled_from([-2.0, 0.0, 0.5]),
    frequency=st.sampled_from([-1.0, 0.0, 1.5]),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    bias=st.dictionaries(st.integers(0, NUM_ROWS - 1), st.floats(-100, 100, width=16), max_size=4),
)
def test_penalties_and_biases_follow_their_formulas(
    logits: NDArray[np.float32],
    prompt: list[int],
    produced: list[int],
    presence: float,
    frequency: float,
    repetition: float,
    bias: dict[int, float],
) -> None:
    """Each logit first by the repetition penalty, then OpenAI's two, then its bias; greedy shows the largest."""
    sampler = sampler_of(
        prompt,
        temperature=0,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    for token in produced:
        sampler.note(token)
    wanted: list[float] = []
    for i, value in enumerate(map(float, logits)):
        if i in prompt or i in produced:
            value = value / repetition if value > 0 else value * repetition
        value -= frequency * produced.count(i) + presence * (i in produced)
        wanted.append(value + bias.get(i, 0.0))
    # The sampler adds in float32: numbers up to 300 by four operations of relative error 2^-24.
    token = sampler.choose(logits, EVERYTHING)
    assert wanted[token] >= max(wanted) - 300 * 8 * 2**-24


def test_a_bias_for_what_is_no_row_is_nothing() -> None:
    logits = np.arange(NUM_ROWS, dtype=np.float32)
    sampler = sampler_of(temperature=0, logit_bias={NUM_ROWS: 100.0, -1: 100.0, 3: 100.0})
    assert sampler.choose(logits, EVERYTHING) == 3


@pytest.mark.parametrize(("value", "bias"), [(np.nan, 0.0), (np.inf, 0.0), (0.0, 1e39)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_logits_that_are_no_numbers_end_the_answer(value: float, bias: float, temperature: float) -> None:
    """Rather than an arbitrary token."""
    logits = np.zeros(NUM_ROWS, dtype=np.float32)
    logits[5] = value
    sampler = sampler_of(temperature=temperature, logit_bias={5: bias})
    with pytest.raises(NonFiniteError, match=r"logit.* is (nan|inf); expected a number"):
        sampler.choose(logits, EVERYTHING)


@pytest.mark.parametrize("seed", [0, -1, 2**64, 12345678901234567890])
def test_a_seed_gives_one_sequence_and_every_choice_another(seed: int) -> None:
    logits = np.zeros(NUM_ROWS, dtype=np.float32)

    def drawn(**fields: Any) -> list[int]:
        sampler = sampler_of(**fields)
        return [sampler.choose(logits, EVERYTHING) for _ in range(20)]

    assert drawn(seed=seed) == drawn(seed=seed)
    assert drawn(seed=seed) != drawn(seed=seed, choice=1)
    assert drawn(seed=seed) != drawn(seed=seed + 1)
    assert drawn(seed=None) != drawn(seed=None)


@given(logits=logits_of_rows, order=st.permutations(range(NUM_ROWS)))
def test_a_draw_does_not_depend_on_which_tokens_were_barred(logits: NDArray[np.float32], order: list[int]) -> None:
    """Barring tokens of no probability changes nothing: the draw is over what remains, likeliest first."""
    barred = EVERYTHING.copy()
    barred[order[:10]] = False
    lowered = logits.copy()
    lowered[order[:10]] = -np.inf
    if lowered.max() > -np.inf:
        one, other = sampler_of(), sampler_of()
        for _ in range(5):
            assert one.choose(logits, barred) == other.choose(lowered, EVERYTHING)


@given(
    logits=logits_of_rows.filter(lambda row: row.max() > -np.inf), count=st.integers(0, 20), token=st.integers(0, 39)
)
def test_likelihoods_are_the_models_own_sorted_and_sum_to_one(
    logits: NDArray[np.float32], count: int, token: int
) -> None:
    sampler = sampler_of([token], top_logprobs=count, temperature=0.1, logit_bias={token: 50.0}, repetition_penalty=2)
    found = sampler.likelihood(logits, token)
    total = math.fsum(math.exp(float(value)) for value in logits)
    expected = {i: float(logits[i]) - math.log(total) for i in range(NUM_ROWS)}
    assert found.logprob == pytest.approx(expected[token], abs=1e-9)
    assert len(found.top) == count
    assert [logprob for _, logprob in found.top] == sorted((logprob for _, logprob in found.top), reverse=True)
    assert len({i for i, _ in found.top}) == count
    for i, logprob in found.top:
        assert logprob == pytest.approx(expected[i], abs=1e-9)
    if found.top:
        assert found.top[-1][1] >= sorted(expected.values())[-count] - 1e-9
    everything = [sampler.likelihood(logits, i).logprob for i in range(NUM_ROWS)]
    assert math.fsum(map(math.exp, everything)) == pytest.approx(1, abs=1e-12)
