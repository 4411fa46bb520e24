"""The two forms of latent attention, masks, and what the observer is given."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chogori.errors import ConfigError
from chogori.model import K2Config, K2Model, LatentCache, YarnConfig

MakeModel = Callable[..., K2Model]

VARIANTS = {
    "small": {},
    "full queries": {"q_lora_rank": None},
    "values wider than keys": {"v_head_dim": 28},
    "one head": {"num_heads": 1},
    "yarn": {"yarn": YarnConfig(factor=4.0, original_max_position_embeddings=32, beta_fast=8.0)},
}


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def model(request: pytest.FixtureRequest, make_model: MakeModel, small: K2Config) -> K2Model:
    return make_model(small.replace(**request.param))


@pytest.mark.parametrize("chunks", [[17], [1] * 17, [9, 1, 7], [1, 16]], ids=str)
def test_the_absorbed_form_equals_the_expanded(model: K2Model, tokens_BT: Tensor, chunks: list[int]) -> None:
    # (W_ukᵀ q)·c = q·(W_uk c) and Σ p (W_uv c) = W_uv Σ p c: the same numbers, associated in another order.
    cache = LatentCache(model.config, batch_size=2, max_tokens=17)
    parts = [model(part_BT, cache=cache) for part_BT in tokens_BT.split(chunks, dim=1)]
    assert cache.length == 17
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens_BT), atol=2e-5, rtol=1e-5)


def test_the_cache_holds_latent_and_rope_key_only(small: K2Config) -> None:
    cache = LatentCache(small, batch_size=2, max_tokens=5, dtype=torch.bfloat16)
    assert cache.latents_LBSW.numel() == 2 * 5 * small.num_layers * small.cache_numbers_per_token_and_layer
    assert cache.latents_LBSW.dtype == torch.bfloat16
    assert K2Config.preset("kimi-k2").cache_numbers_per_token_and_layer == 576


def test_a_cache_that_is_too_small_or_too_large_is_refused(
    make_model: MakeModel, small: K2Config, tokens_BT: Tensor
) -> None:
    with pytest.raises(
        ConfigError, match=r"a cache of 129 tokens .* expected 1 to model\.max_position_embeddings = 128"
    ):
        LatentCache(small, batch_size=1, max_tokens=129)
    cache = LatentCache(small, batch_size=2, max_tokens=16)
    with pytest.raises(ConfigError, match="the cache holds 16 tokens and 17 are needed"):
        make_model()(tokens_BT, cache=cache)


def documents_of(lengths: list[int]) -> Tensor:
    return torch.cat([torch.full((length,), number, dtype=torch.int32) for number, length in enumerate(lengths)])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_documents_equal_separate_forwards(make_model: MakeModel, small: K2Config, dtype: torch.dtype) -> None:
    # Attention sees differences of positions only, so a document may start anywhere in its row. In bfloat16 all layers
    # are dense: a rounding that flips the choice of an expert is no error of attention. Rows are longer than a block.
    num_dense_layers = 1 if dtype == torch.float32 else 3
    model = make_model(small.replace(max_position_embeddings=256, num_dense_layers=num_dense_layers))
    model.compute_dtype = dtype
    lengths = ([5, 1, 11, 150], [120, 40, 7])
    tokens_BT = torch.randint(0, 96, (2, 167), generator=torch.Generator().manual_seed(5))
    documents_BT = torch.stack([documents_of(row) for row in lengths])
    packed_BTV = model(tokens_BT, documents_BT=documents_BT)
    # Rounding only: rotations by other angles, and in bfloat16 2⁻⁹ in each of a few dozen operations. A leak would be
    # of order 1.
    allowed = 1e-5 if dtype == torch.float32 else 0.06
    for row, row_lengths in enumerate(lengths):
        start = 0
        for length in row_lengths:
            alone_TV = model(tokens_BT[row : row + 1, start : start + length])[0]
            error = (packed_BTV[row, start : start + length] - alone_TV).norm(dim=-1) / alone_TV.norm(dim=-1)
            assert float(error.max()) < allowed
            start += length


def test_no_token_sees_a_later_one(model: K2Model, tokens_BT: Tensor) -> None:
    changed_BT = tokens_BT.clone()
    changed_BT[:, 9] = (changed_BT[:, 9] + 1) % 96
    before, after = model(tokens_BT), model(changed_BT)
    # Not bit for bit: a product over more or fewer of an expert's rows may add in another order.
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-5, rtol=0)
    assert bool(((before - after)[:, 9:].abs().amax(-1) > 1e-3).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [True, False])
def test_the_observer_gets_what_reproduces_the_log_sum_exp(
    make_model: MakeModel, tokens_BT: Tensor, dtype: torch.dtype, packed: bool
) -> None:
    model = make_model().train()
    model.compute_dtype = dtype
    documents_BT = torch.stack([documents_of([5, 12]), documents_of([17])]) if packed else None
    seen: list[tuple[Tensor, Tensor, Tensor, float, Tensor | None]] = []
    for block in model.model.layers:
        block.self_attn.logit_observer = lambda *arguments: seen.append(arguments)  # pyright: ignore
    model.loss(tokens_BT, tokens_BT.roll(-1, 1), documents_BT=documents_BT).backward()
    assert len(seen) == model.config.num_layers
    for q_BHTQ, k_BHTQ, lse_BHT, scale, documents in seen:
        assert not q_BHTQ.requires_grad
        assert lse_BHT.dtype == torch.float32
        visible = torch.ones(17, 17, dtype=torch.bool).tril()
        if packed:
            assert documents is not None
            visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
        else:
            assert documents is None
        logits = (q_BHTQ.float() @ k_BHTQ.float().mT * scale).masked_fill(~visible, float("-inf"))
        torch.testing.assert_close(lse_BHT, logits.logsumexp(-1), atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)


def test_the_observer_is_silent_outside_training(make_model: MakeModel, tokens_BT: Tensor) -> None:
    model = make_model()

    def fail(*_: object) -> None:
        raise AssertionError("called in eval mode")

    for block in model.model.layers:
        block.self_attn.logit_observer = fail  # pyright: ignore
    model(tokens_BT)
