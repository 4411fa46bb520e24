from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from chogori.errors import ConfigError
from chogori.model import K2Config, K2Model, YarnConfig, generate

MakeModel = Callable[..., K2Model]


def stacked(model: K2Model, tokens_BT: Tensor, **options: Any) -> Tensor:
    return torch.stack(list(generate(model, tokens_BT, **options)), 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("q_lora_rank", [24, None])
@pytest.mark.parametrize("with_yarn", [True, False])
def test_greedy_equals_the_arg_max_of_full_forwards(
    make_model: MakeModel, small: K2Config, yarn: YarnConfig, tokens_BT: Tensor, q_lora_rank: int, with_yarn: bool
) -> None:
    model = make_model(small.replace(q_lora_rank=q_lora_rank, yarn=yarn if with_yarn else None))
    expected_BT = tokens_BT
    for _ in range(12):
        expected_BT = torch.cat([expected_BT, model(expected_BT)[:, -1:].argmax(-1)], 1)
    assert torch.equal(stacked(model, tokens_BT, max_new_tokens=12), expected_BT[:, tokens_BT.shape[1] :])


def test_rows_do_not_influence_each_other(make_model: MakeModel, tokens_BT: Tensor) -> None:
    model = make_model()
    together = stacked(model, tokens_BT, max_new_tokens=8)
    alone = torch.cat([stacked(model, row_T[None], max_new_tokens=8) for row_T in tokens_BT])
    assert torch.equal(together, alone)


def test_the_same_generator_seed_gives_the_same_sample(make_model: MakeModel, tokens_BT: Tensor) -> None:
    model = make_model()
    samples = [
        stacked(model, tokens_BT, max_new_tokens=10, temperature=1.5, generator=seeded(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5}])
def test_the_narrowest_sampling_is_greedy(make_model: MakeModel, tokens_BT: Tensor, options: dict[str, Any]) -> None:
    model = make_model()
    sampled = stacked(model, tokens_BT, max_new_tokens=8, generator=seeded(), **{"temperature": 1.0, **options})
    assert torch.equal(sampled, stacked(model, tokens_BT, max_new_tokens=8))


def nucleus_edge(probability_V: Tensor, top_p: float) -> Tensor:
    """Probability of the last token of the smallest set that reaches `top_p`."""
    sorted_V = probability_V.sort(descending=True).values
    return sorted_V[int((sorted_V.cumsum(0) < top_p).sum())]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, lambda p: p > 0),
        ({"top_k": 4}, lambda p: p >= p.sort(descending=True).values[3]),
        ({"top_p": 0.7}, lambda p: p >= nucleus_edge(p, 0.7)),
        ({"temperature": 0.5}, lambda p: p > 0),
    ],
)
def test_frequencies_follow_the_probabilities_of_the_allowed_tokens(
    make_model: MakeModel, tokens_BT: Tensor, options: dict[str, Any], allowed: Callable[[Tensor], Tensor]
) -> None:
    model, num_draws = make_model(), 4000
    rows_BT = tokens_BT[:1].expand(num_draws, -1)
    temperature = float(str(options.get("temperature", 1.0)))
    probability_V = (model(tokens_BT[:1])[0, -1] / temperature).softmax(-1).detach()
    probability_V = probability_V * allowed(probability_V)
    probability_V /= probability_V.sum()

    draws = stacked(model, rows_BT, max_new_tokens=1, generator=seeded(), **{"temperature": 1.0, **options})

    frequency_V = torch.bincount(draws.flatten(), minlength=96) / num_draws
    assert not bool((frequency_V[probability_V == 0] > 0).any())
    # Five standard deviations of a binomial share.
    deviation_V = (probability_V * (1 - probability_V) / num_draws).sqrt()
    assert bool(((frequency_V - probability_V).abs() <= 5 * deviation_V + 1e-9).all())


def test_a_stopped_row_repeats_its_stop_id_and_all_stopped_ends(make_model: MakeModel, tokens_BT: Tensor) -> None:
    model = make_model()
    free = stacked(model, tokens_BT, max_new_tokens=20)
    first, second = int(free[0, 2]), int(free[1, 6])
    stopped = stacked(model, tokens_BT, max_new_tokens=20, stop_ids=(first, second))
    ends = [next(at for at, token in enumerate(row.tolist()) if token in (first, second)) for row in free]
    assert stopped.shape[1] == max(ends) + 1
    for row, (tokens, end) in enumerate(zip(stopped, ends, strict=True)):
        assert torch.equal(tokens[: end + 1], free[row, : end + 1])
        assert set(tokens[end:].tolist()) == {int(free[row, end])}


def test_the_models_mode_comes_back(make_model: MakeModel, tokens_BT: Tensor) -> None:
    model = make_model().train()
    steps = generate(model, tokens_BT, max_new_tokens=3)
    next(steps)
    del steps  # a caller that stops early leaves no trace
    assert model.training
    assert int(model.expert_load_LE().sum()) == 0  # sampling is not training


def test_a_bfloat16_model_generates(make_model: MakeModel, tokens_BT: Tensor) -> None:
    model = make_model().bfloat16()
    model.compute_dtype = torch.bfloat16
    assert stacked(model, tokens_BT, max_new_tokens=4).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
        ({"temperature": -1.0}, r"temperature is -1.0; expected 0 \(greedy\) or above"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0 and at most 1"),
        ({"top_k": 0}, "top_k is 0; expected at least 1, or None for all tokens"),
        (
            {"max_new_tokens": 112},
            "17 prompt tokens and max_new_tokens = 112 exceed model.max_position_embeddings = 128",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_the_call(
    make_model: MakeModel, tokens_BT: Tensor, options: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 4, **options}
    with pytest.raises(ConfigError, match=message):
        generate(make_model(), tokens_BT, **arguments)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), r"the prompt has shape \[5\]; expected \[batch, tokens\]"),
        (torch.zeros(1, 0, dtype=torch.int64), r"the prompt has shape \[1, 0\]"),
        (torch.zeros(1, 5), "the prompt is torch.float32; expected token ids in torch.int64"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(make_model: MakeModel, prompt: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(make_model(), prompt, max_new_tokens=1)


def test_the_last_position_can_be_generated(make_model: MakeModel, small: K2Config, tokens_BT: Tensor) -> None:
    model = make_model(small.replace(max_position_embeddings=20))
    assert stacked(model, tokens_BT, max_new_tokens=3).shape == (2, 3)
