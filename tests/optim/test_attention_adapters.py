from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from chogori.errors import ConfigError
from chogori.optim import AttentionProbe, MuonClip
from chogori.optim.attention_adapters import (
    IMPLEMENTATION,
    GroupedAttention,
    LatentAttention,
    NormedAttention,
    find_attention,
)
from tests.optim import small_models
from tests.optim.small_models import loss_of, random_tokens

FAMILIES = {
    "llama": lambda: small_models.llama(bias=True),
    "qwen3": small_models.qwen3,
    "deepseek_v3": small_models.deepseek_v3,
}


def gradients_of(model: nn.Module, **inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = cast(Any, model)(**inputs, use_cache=False).loss
    loss.backward()
    found = {name: cast(Tensor, parameter.grad).clone() for name, parameter in model.named_parameters()}
    return loss.detach(), found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masking", ["none", "padding", "packed"])
@pytest.mark.parametrize("threshold", [1e-3, 1e3])
def test_observed_models_compute_what_sdpa_computes(family: str, masking: str, threshold: float) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().train()
    model.set_attn_implementation("sdpa")
    tokens_BT = random_tokens(2, 11)
    inputs = {"input_ids": tokens_BT, "labels": tokens_BT}
    if masking == "padding":
        mask = torch.ones_like(tokens_BT)
        mask[0, :3] = 0
        inputs["attention_mask"] = mask
        inputs["labels"] = tokens_BT.masked_fill(mask == 0, -100)
    elif masking == "packed":
        inputs["position_ids"] = torch.cat((torch.arange(4), torch.arange(7)))[None].expand(2, -1)
    expected_loss, expected = gradients_of(model, **inputs)
    with AttentionProbe(model, threshold=threshold) as probe:
        assert model.config._attn_implementation == IMPLEMENTATION
        loss, gradients = gradients_of(model, **inputs)
        assert all(float(layer.top_H.max()) > -torch.inf for layer in probe.monitor.collect())
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_packed_documents_hide_each_other_from_the_maximum() -> None:
    torch.manual_seed(0)
    model = small_models.llama(layers=1).double().train()
    first, second = random_tokens(1, 5, 1), random_tokens(1, 6, 2)
    tops: list[Tensor] = []
    with AttentionProbe(model, threshold=1e-9) as probe:
        for tokens_BT in (first, second):
            loss_of(model, tokens_BT)
        tops.append(probe.monitor.collect()[0].maximum_H)
        positions = torch.cat((torch.arange(5), torch.arange(6)))[None]
        packed = torch.cat((first, second), dim=1)
        cast(Any, model)(input_ids=packed, position_ids=positions, use_cache=False)
        tops.append(probe.monitor.collect()[0].maximum_H)
    torch.testing.assert_close(tops[0], tops[1], rtol=1e-9, atol=1e-9)


def test_evaluation_and_generation_are_not_observed() -> None:
    model = small_models.llama().eval()
    expected = cast(Any, model).generate(random_tokens(1, 4), max_new_tokens=4, do_sample=False, pad_token_id=0)
    with AttentionProbe(model) as probe:
        found = cast(Any, model).generate(random_tokens(1, 4), max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert all(float(layer.bound_H.max()) == -torch.inf for layer in probe.monitor.collect())
    assert torch.equal(found, expected)


def test_every_family_is_recognised() -> None:
    for family, kind in (("llama", GroupedAttention), ("qwen3", NormedAttention), ("deepseek_v3", LatentAttention)):
        adapters = [adapter for _, adapter in find_attention(FAMILIES[family]())]
        assert [type(adapter) for adapter in adapters] == [kind, kind]
        assert [adapter.name for adapter in adapters] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
        assert [adapter.num_heads for adapter in adapters] == [4, 4]


def test_closing_restores_the_model() -> None:
    model = small_models.llama().train()
    before = model.config._attn_implementation
    optimizer = MuonClip(model)
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.self_attn is observed already; close the other"):
        MuonClip(model)
    optimizer.close()
    assert model.config._attn_implementation == before
    assert all(module.logit_observer is None for module in model.modules() if hasattr(module, "logit_observer"))
    MuonClip(model).close()


def test_attention_that_cannot_be_scaled_is_refused() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(
        ConfigError, match=r"cannot scale the attention layer transformer\.h\.0\.attn \(GPT2Attention\)"
    ):
        MuonClip(gpt2)
    with pytest.raises(ConfigError, match=r"\(MultiheadAttention\): it has no q_proj and k_proj"):
        MuonClip(nn.TransformerEncoderLayer(16, 2))
    with pytest.raises(ConfigError, match="found no attention layer in Linear; pass qk_clip=None"):
        MuonClip(nn.Linear(4, 4))


def test_attention_that_does_not_report_is_refused() -> None:
    model = small_models.PackedModel()
    del model.attention.logit_observer
    with pytest.raises(
        ConfigError, match=r"attention \(ObservedAttention\) does not report its logits. Give it an attr"
    ):
        MuonClip(model)


def test_dropout_frozen_and_wrapped_projections_are_refused() -> None:
    model = small_models.llama()
    attention = cast(Any, model).model.layers[0].self_attn
    attention.attention_dropout = 0.1
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn has attention_dropout 0\.1; expected 0"):
        MuonClip(model)
    attention.attention_dropout = 0.0
    attention.q_proj.weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="has a frozen q_proj, which QK-Clip would change"):
        MuonClip(model)
    attention.q_proj = nn.Sequential(attention.q_proj)
    with pytest.raises(ConfigError, match=r"has a q_proj that is no plain nn\.Linear but Sequential"):
        MuonClip(model)


def test_norms_that_would_undo_a_scaling_are_refused() -> None:
    class OffsetNorm(nn.Module):
        """Gemma's: (1 + weight)·x."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.rms_norm(x, (8,)) * (1 + self.weight)

    model = small_models.qwen3()
    attention = cast(Any, model).model.layers[0].self_attn
    attention.q_norm = OffsetNorm()
    with pytest.raises(ConfigError, match="a norm q_norm whose output does not scale with its weight"):
        MuonClip(model)
    model = small_models.llama()
    cast(Any, model).model.layers[1].self_attn.query_norm = nn.RMSNorm(8)
    with pytest.raises(ConfigError, match=r"layers\.1\.self_attn .*a norm query_norm that may undo a scaling"):
        MuonClip(model)


def test_heads_that_do_not_divide_the_rows_are_refused() -> None:
    model = small_models.llama()
    attention = cast(Any, model).model.layers[0].self_attn
    attention.head_dim = 5
    with pytest.raises(ConfigError, match="has 32 query and 16 key rows, which heads of 5 do not divide"):
        MuonClip(model)


def test_kernels_without_observable_logits_are_refused_in_training() -> None:
    model = small_models.llama(layers=1).train()
    with AttentionProbe(model), pytest.raises(ConfigError, match="uses softcap, under which logits cannot be observed"):
        cast(Any, model)(input_ids=random_tokens(1, 4), softcap=30.0)
