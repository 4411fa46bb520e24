"""After a clip, logits recomputed from the same inputs do not exceed the threshold: for every kind of attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chogori.errors import ConfigError
from chogori.optim import AttentionProbe, MuonClip, QKClip, QKClipConfig
from chogori.optim.attention_adapters import NormedAttention
from chogori.optim.config import ClipForm
from chogori.optim.observation import AttentionLogitMonitor
from chogori.optim.qk_clip import RowFactors, scale_rows_
from tests.optim import small_models
from tests.optim.small_models import brute_force_logits, loss_of, random_tokens


@dataclass
class Call:
    """The inputs of one attention layer in one forward."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def logits(self) -> Tensor:
        """[B, H, T, S] with the layer's present weights; reads q and k where the layer reports them."""
        seen: list[Tensor] = []

        def capture(q: Tensor, k: Tensor, lse: Tensor, scale: float, *_: object, **__: object) -> None:
            seen.append(brute_force_logits(q, k, scale))

        module = cast(Any, self.module)
        kept, module.logit_observer = module.logit_observer, capture
        try:
            with torch.no_grad():
                self.module(*self.args, **self.kwargs)
        finally:
            module.logit_observer = kept
        return seen[0]


def record(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[list[Call], Tensor]:
    """Run `forward` and keep what every attention layer was called with."""
    calls: list[Call] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(module, args, {**kwargs, "past_key_values": None}))

    hooks = [
        module.register_forward_pre_hook(before, with_kwargs=True)
        for module in model.modules()
        if hasattr(module, "logit_observer")
    ]
    result = forward()
    for hook in hooks:
        hook.remove()
    return calls, result


FAMILIES: dict[str, Callable[[int, bool], nn.Module]] = {
    "multi-head": lambda heads, bias: small_models.llama(heads=2 * heads, key_heads=2 * heads, bias=bias),
    "grouped": lambda heads, bias: small_models.llama(heads=2 * heads, key_heads=heads, bias=bias),
    "one key": lambda heads, bias: small_models.llama(heads=2 * heads, key_heads=1, bias=bias),
    "normed": lambda heads, bias: small_models.qwen3(heads=2 * heads, key_heads=heads),
    "latent": lambda heads, bias: small_models.deepseek_v3(heads=heads, bias=bias),
    "latent without query compression": lambda heads, bias: small_models.deepseek_v3(
        heads=heads, q_lora_rank=None, nope=4, rope=8, value=8, bias=bias
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["per_head", "layer"])
# No shrinking: an example builds a model, and the arguments say enough.
@settings(max_examples=12, phases=[Phase.generate])
@given(
    seed=st.integers(0, 10**6),
    heads=st.integers(1, 3),
    alpha=st.one_of(st.just(0.5), st.floats(0, 1)),
    size=st.floats(0.5, 4),
    share=st.floats(0.05, 1.5),
    batch=st.integers(1, 2),
    tokens=st.integers(2, 10),
    bias=st.booleans(),
)
def test_clipped_logits_stay_under_the_threshold_and_scale_by_gamma(
    family: str,
    form: ClipForm,
    seed: int,
    heads: int,
    alpha: float,
    size: float,
    share: float,
    batch: int,
    tokens: int,
    bias: bool,
) -> None:
    torch.manual_seed(seed)
    model = FAMILIES[family](heads, bias).double().train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn" in name and ("norm" not in name or family == "normed"):
                parameter.add_(torch.randn_like(parameter), alpha=size / parameter.shape[-1] ** 0.5)
    tokens_BT = random_tokens(batch, tokens, seed)
    # The highest logit of the untouched model decides a threshold that some heads pass, or none.
    with AttentionProbe(model, threshold=1e-9) as probe:
        calls, _ = record(model, lambda: loss_of(model, tokens_BT))
        top = max(float(layer.top_H.max()) for layer in probe.monitor.collect())
        assert top == pytest.approx(max(float(call.logits().max()) for call in calls), rel=1e-9)
    threshold = share * abs(top) + 1e-6

    # lr 0: the step clips and does nothing else.
    optimizer = MuonClip(model, lr=0.0, qk_clip=QKClipConfig(threshold=threshold, alpha=alpha, form=form))
    calls, loss = record(model, lambda: loss_of(model, tokens_BT))
    before = [call.logits() for call in calls]
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss.backward()
    optimizer.step()
    report = optimizer.clip_report
    assert report is not None
    for call, old, layer in zip(calls, before, report.layers, strict=True):
        new = call.logits()
        true_H = old.amax(dim=(0, 2, 3))
        hot_H = true_H > threshold
        # The clip looks at every head: gamma is min(1, threshold / maximum), to float64 rounding.
        gamma_H = (threshold / true_H).where(hot_H, torch.ones(()).double())
        shared = form == "layer" or family == "normed"
        if form == "layer":
            gamma_H = gamma_H.min().expand_as(gamma_H)
        torch.testing.assert_close(layer.gamma_H, gamma_H, rtol=1e-9, atol=0)
        scaled = gamma_H.min().expand_as(gamma_H) if shared else gamma_H
        # Every logit of a head, hidden ones aside, is gamma times as large: other heads keep theirs.
        finite = old > -torch.inf
        torch.testing.assert_close(new[finite], (old * scaled[None, :, None, None])[finite], rtol=1e-9, atol=1e-9)
        assert float(new.max()) <= threshold * (1 + 1e-9)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, kept[name])}
    assert bool(changed) == (report.num_hot_heads > 0), changed
    assert all("self_attn" in name and "v_proj" not in name and "o_proj" not in name for name in changed)
    optimizer.close()


def test_alpha_shares_the_factor_between_queries_and_keys() -> None:
    model = small_models.deepseek_v3(heads=2, nope=3, rope=2, value=4)
    probe = AttentionProbe(model)
    gamma_H = torch.tensor([0.25, 1.0], dtype=torch.float64)
    q, kv = (entry.factor_R for entry in probe.layers[0].per_head(gamma_H, 0.25))
    quarter = 0.25**0.25
    assert q.tolist() == pytest.approx([quarter] * 3 + [0.25] * 2 + [1.0] * 5)
    assert kv.tolist() == pytest.approx([0.25 / quarter] * 3 + [1.0] * 4 + [1.0] * 7)
    q, kv, latent = (entry.factor_R for entry in probe.layers[0].layer_wide(0.25, 0.5))
    assert q.tolist() == pytest.approx([0.5] * 10)
    assert kv.tolist() == pytest.approx(([0.5] * 3 + [1.0] * 4) * 2)
    assert latent.tolist() == pytest.approx([1.0] * 16 + [0.5] * 2)


def test_a_shared_key_follows_the_hottest_head_of_its_group() -> None:
    probe = AttentionProbe(small_models.llama(heads=4, key_heads=2, head_dim=1))
    gamma_H = torch.tensor([0.25, 1.0, 1.0, 1.0], dtype=torch.float64)
    q, k = (entry.factor_R for entry in probe.layers[0].per_head(gamma_H, 0.5))
    assert q.tolist() == pytest.approx([0.5, 2.0, 1.0, 1.0])
    assert k.tolist() == pytest.approx([0.5, 1.0])


def test_normed_attention_takes_the_least_gamma_of_the_layer() -> None:
    layer = AttentionProbe(small_models.qwen3()).layers[0]
    assert isinstance(layer, NormedAttention)
    factors = layer.per_head(torch.tensor([1.0, 0.25, 0.5, 1.0], dtype=torch.float64), 0.5)
    assert [set(entry.factor_R.tolist()) for entry in factors] == [{0.5}, {0.5}]


def test_packed_documents_are_clipped_by_what_their_tokens_see() -> None:
    torch.manual_seed(0)
    model = small_models.PackedModel()
    with torch.no_grad():
        model.attention.q_proj.weight.mul_(20)
    tokens_BT = random_tokens(2, 9)
    documents_BT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 1, 1, 1]])
    optimizer = MuonClip(model, lr=0.0, qk_clip=0.1)
    model(tokens_BT, documents_BT).backward()
    assert optimizer.step() is None
    probe = AttentionLogitMonitor(threshold=1e-9)
    model.attention.logit_observer = probe.observer("again", 4)
    model(tokens_BT, documents_BT)
    top_H = probe.collect()[0].top_H
    # The layer is one group of documents: the greatest visible logit is the threshold, float32 rounding aside; a
    # logit between documents, which nobody sees, may be larger.
    assert float(top_H.max()) == pytest.approx(0.1, rel=1e-5)
    report = optimizer.clip_report
    assert report is not None
    assert report.num_hot_heads > 0


def test_the_largest_micro_batch_decides() -> None:
    torch.manual_seed(0)
    model = small_models.llama().double().train()
    batches = [random_tokens(1, 8, seed) for seed in range(4)]
    with AttentionProbe(model, threshold=1e-9) as probe:
        tops: list[float] = []
        for tokens_BT in batches:
            loss_of(model, tokens_BT)
            tops.append(max(float(layer.top_H.max()) for layer in probe.monitor.collect()))
    optimizer = MuonClip(model, lr=0.0, qk_clip=min(tops) / 2)
    for tokens_BT in batches:
        loss_of(model, tokens_BT).backward()
    optimizer.step()
    assert max(optimizer.last_max_logits().values()) == pytest.approx(max(tops), rel=1e-12)
    optimizer.close()


def test_bound_form_clips_at_least_as_strongly() -> None:
    torch.manual_seed(0)
    model = small_models.llama().double().train()
    tokens_BT = random_tokens(2, 8)
    with AttentionProbe(model, threshold=1e-9) as probe:
        loss_of(model, tokens_BT)
        top = max(float(layer.top_H.max()) for layer in probe.monitor.collect())
    optimizer = MuonClip(model, lr=0.0, qk_clip=QKClipConfig(threshold=top / 2, exact=False))
    calls, loss = record(model, lambda: loss_of(model, tokens_BT))
    loss.backward()
    optimizer.step()
    report = optimizer.clip_report
    assert report is not None
    assert report.num_hot_heads > 0
    for call, layer in zip(calls, report.layers, strict=True):
        new_H = call.logits().amax(dim=(0, 2, 3))
        assert bool((new_H <= top / 2 * (1 + 1e-9)).all())
        assert bool((layer.maximum_H == -torch.inf).all())
    optimizer.close()


def test_rows_are_rounded_once() -> None:
    weight = nn.Parameter(torch.randn(4, 3).bfloat16())
    factor_R = torch.rand(4, dtype=torch.float64)
    expected = (weight.detach().float() * factor_R.float()[:, None]).bfloat16()
    scale_rows_(RowFactors(weight, factor_R))
    assert torch.equal(weight.detach(), expected)


def test_layers_and_monitor_belong_together() -> None:
    probe = AttentionProbe(small_models.llama())
    with pytest.raises(ConfigError, match="layers other than those its monitor observes"):
        QKClip(probe.layers[:1], probe.monitor, QKClipConfig())
