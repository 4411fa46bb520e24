"""What the tests of the model share: small configurations, and weights large enough that a mistake is visible."""

from collections.abc import Callable

import pytest
import torch

from chogori.model import K2Config, K2Model, YarnConfig

SMALL = K2Config(
    vocab_size=96,
    hidden_size=32,
    num_layers=3,
    num_dense_layers=1,
    dense_ffn_size=48,
    expert_ffn_size=16,
    num_experts=8,
    num_experts_per_token=3,
    routed_scaling_factor=1.7,
    num_heads=4,
    q_lora_rank=24,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    rope_theta=1000.0,
    max_position_embeddings=128,
)
YARN = YarnConfig(factor=4.0, original_max_position_embeddings=32, beta_fast=8.0, beta_slow=1.0, mscale=0.7)


# Models this small gain nothing from threads, and lose much where other work shares the cores.
torch.set_num_threads(1)


@torch.no_grad()
def scatter(model: K2Model, seed: int = 0) -> K2Model:
    """Fill every parameter and the routers' biases with numbers that keep activations near 1.

    Initial weights of 0.02 make attention nearly uniform and hide errors in it; biases of zero hide the difference
    between choosing with and without them.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            value.normal_(0.0, 0.2, generator=generator)
        elif "norm" in name:
            value.normal_(1.0, 0.2, generator=generator)
        elif value.ndim > 1:
            value.normal_(0.0, value.shape[-1] ** -0.5, generator=generator)
    return model


@pytest.fixture
def small() -> K2Config:
    return SMALL


@pytest.fixture
def yarn() -> YarnConfig:
    return YARN


@pytest.fixture
def make_model() -> Callable[..., K2Model]:
    """`make_model(config, seed=0)`: a model in eval mode with scattered weights."""

    def make(config: K2Config = SMALL, seed: int = 0) -> K2Model:
        return scatter(K2Model(config, seed=seed), seed).eval()

    return make


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, (2, 17), generator=torch.Generator().manual_seed(3))
