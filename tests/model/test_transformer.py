from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chogori.model import K2Config, K2Model

MakeModel = Callable[..., K2Model]


def test_a_seed_decides_the_initial_weights(small: K2Config) -> None:
    first, second, other = (K2Model(small, seed=seed).state_dict() for seed in (1, 1, 2))
    for name, value in first.items():
        assert torch.equal(value, second[name])
        if name.endswith("norm.weight"):
            assert torch.equal(value, torch.ones_like(value))
        elif not name.endswith("e_score_correction_bias"):
            assert not torch.equal(value, other[name])


def test_initial_weights_have_the_configs_deviation() -> None:
    config = K2Config.preset("tiny").replace(initializer_range=0.006)
    for name, parameter in K2Model(config, seed=0).named_parameters():
        if parameter.ndim > 1:
            # Five standard errors of a standard deviation.
            assert abs(float(parameter.detach().std()) / 0.006 - 1) < 5 / (2 * parameter.numel()) ** 0.5, name


def test_training_in_bfloat16_with_float32_parameters_stays_near_float32(
    make_model: MakeModel, small: K2Config, tokens_BT: Tensor
) -> None:
    # Dense layers only: a rounding may flip the choice of an expert, which is no error.
    exact = make_model(small.replace(num_dense_layers=3)).train()
    rounded = make_model(small.replace(num_dense_layers=3)).train()
    rounded.compute_dtype = torch.bfloat16
    targets_BT = tokens_BT.roll(-1, 1)
    for model in (exact, rounded):
        model.loss(tokens_BT, targets_BT).backward()
    theirs = dict(exact.named_parameters())
    for name, parameter in rounded.named_parameters():
        grad, expected = parameter.grad, theirs[name].grad
        assert grad is not None
        assert expected is not None
        assert grad.dtype == torch.float32
        # 2⁻⁹ in each of a hundred operations, forward and backward.
        assert float((grad - expected).norm() / expected.norm()) < 0.1, name


def test_logits_are_float32_whatever_the_compute_type(make_model: MakeModel, tokens_BT: Tensor) -> None:
    model = make_model().bfloat16()
    model.compute_dtype = torch.bfloat16
    assert model(tokens_BT).dtype == torch.float32


def test_more_tokens_than_positions_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"129 tokens were given; model\.max_position_embeddings is 128"):
        make_model()(torch.zeros(1, 129, dtype=torch.int64))


def test_the_meta_device_holds_the_largest_model() -> None:
    with torch.device("meta"):
        model = K2Model(K2Config.preset("kimi-k2"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.lm_head.weight.shape == (163_840, 7168)
