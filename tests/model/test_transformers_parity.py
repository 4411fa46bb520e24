"""Our model against transformers' DeepseekV3ForCausalLM, an independent implementation, in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from chogori.model import K2Config, K2Model, YarnConfig, generate
from chogori.model.hf_config import to_hf
from tests.model.conftest import scatter

MakeModel = Callable[..., K2Model]

YARNS = (
    None,
    YarnConfig(factor=32.0, original_max_position_embeddings=16),
    YarnConfig(factor=4.0, original_max_position_embeddings=32, beta_fast=8.0, mscale=0.7, mscale_all_dim=0.4),
    YarnConfig(factor=8.0, original_max_position_embeddings=16, beta_fast=32.0, mscale_all_dim=0.0),
)


@st.composite
def configs(draw: st.DrawFn) -> K2Config:
    num_groups = draw(st.sampled_from((1, 1, 2, 4)))
    num_experts = num_groups * draw(st.integers(2, 4))
    num_groups_per_token = draw(st.integers(1, num_groups))
    reachable = num_groups_per_token * num_experts // num_groups
    num_layers = draw(st.integers(1, 3))
    return K2Config(
        vocab_size=draw(st.integers(17, 80)),
        rms_norm_eps=draw(st.sampled_from((1e-6, 1e-2))),
        hidden_size=draw(st.sampled_from((8, 24, 32))),
        num_layers=num_layers,
        num_dense_layers=draw(st.integers(0, min(2, num_layers))),
        dense_ffn_size=draw(st.integers(4, 40)),
        expert_ffn_size=8 * draw(st.integers(1, 3)),
        num_experts=num_experts,
        num_experts_per_token=draw(st.integers(1, min(reachable, 4))),
        num_shared_experts=draw(st.integers(1, 2)),
        num_expert_groups=num_groups,
        num_groups_per_token=num_groups_per_token,
        routed_scaling_factor=draw(st.sampled_from((1.0, 2.827))),
        normalize_routing_weights=draw(st.booleans()),
        num_heads=draw(st.integers(1, 4)),
        q_lora_rank=draw(st.sampled_from((None, 6, 20))),
        kv_lora_rank=draw(st.integers(3, 20)),
        qk_nope_head_dim=draw(st.integers(1, 12)),
        qk_rope_head_dim=2 * draw(st.integers(2, 5)),
        v_head_dim=draw(st.integers(1, 20)),
        rope_theta=draw(st.sampled_from((100.0, 50_000.0))),
        yarn=draw(st.sampled_from(YARNS)),
        max_position_embeddings=64,
    )


def their_model(config: K2Config) -> transformers.DeepseekV3ForCausalLM:
    values = cast(Any, to_hf(config, model_type="deepseek_v3", dtype="float32"))
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**values)).eval()


def as_theirs(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under the names that transformers has in memory: gate and up of the experts are one tensor."""
    theirs = {name: value for name, value in named.items() if ".experts.gate_proj" not in name}
    for name, gate in named.items():
        if name.endswith(".experts.gate_proj"):
            up = theirs.pop(name.replace("gate_proj", "up_proj"))
            theirs[name.replace("gate_proj", "gate_up_proj")] = torch.cat([gate, up], dim=1)
    return theirs


def make_tokens(config: K2Config, length: int = 19) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))


@settings(max_examples=30)
@given(config=configs(), seed=st.integers(0, 1000))
def test_logits_and_every_gradient_equal(make_model_once: MakeModel, config: K2Config, seed: int) -> None:
    ours, theirs = make_model_once(config, seed), their_model(config)
    theirs.load_state_dict(as_theirs(ours.state_dict()))
    tokens_BT = make_tokens(config)
    targets_BT = tokens_BT.roll(-1, 1)

    their_logits_BTV = theirs(tokens_BT).logits
    torch.testing.assert_close(ours(tokens_BT), their_logits_BTV, atol=1e-4, rtol=0)

    functional.cross_entropy(their_logits_BTV.flatten(0, 1), targets_BT.flatten()).backward()
    ours.train().loss(tokens_BT, targets_BT).backward()
    our_grads = as_theirs({name: grad_of(parameter) for name, parameter in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        expected = grad_of(parameter)
        error = (our_grads.pop(name) - expected).norm()
        # The second term is float32 noise: some gradients, such as that of a rope key behind one head, nearly vanish.
        assert error <= 1e-3 * expected.norm() + 1e-7, f"{name}: error {error:.2e} of {expected.norm():.2e}"
    assert not our_grads


def grad_of(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.fixture(scope="module")
def make_model_once() -> MakeModel:
    """As `make_model`; hypothesis wants fixtures that live longer than one example."""
    return lambda config, seed: scatter(K2Model(config, seed=seed), seed).eval()


VARIANTS = {
    "plain": {},
    "full queries, two shared experts": {"q_lora_rank": None, "num_shared_experts": 2},
    "groups, no dense layer": {"num_expert_groups": 4, "num_groups_per_token": 2, "num_dense_layers": 0},
    "yarn, two dense layers": {"yarn": YARNS[2], "num_dense_layers": 2},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_what_they_saved_loads_here(small: K2Config, tmp_path: Path, changes: dict[str, object]) -> None:
    config = small.replace(**changes)
    theirs = their_model(config)
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            value.normal_(1.0 if "norm" in name else 0.0, 0.2)
    theirs.save_pretrained(tmp_path)

    ours = K2Model.from_pretrained(tmp_path).eval()

    assert ours.config == config.replace(bos_token_id=ours.config.bos_token_id, eos_token_id=ours.config.eos_token_id)
    tokens_BT = make_tokens(config)
    torch.testing.assert_close(ours(tokens_BT), theirs(tokens_BT).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_what_we_saved_generates_the_same_tokens_there(
    small: K2Config, make_model: MakeModel, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = small.replace(**changes, bos_token_id=1, eos_token_id=2)
    ours = make_model(config)
    ours.save_pretrained(tmp_path, max_shard_bytes=20_000)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    assert isinstance(theirs, transformers.DeepseekV3ForCausalLM)
    assert theirs.dtype == torch.float32
    tokens_BT = make_tokens(config)
    torch.testing.assert_close(ours(tokens_BT), theirs(tokens_BT).logits, atol=1e-4, rtol=0)
    our_BT = torch.stack(list(generate(ours, tokens_BT, max_new_tokens=24)), 1)
    their_BT = cast(Any, theirs).generate(
        tokens_BT,
        attention_mask=torch.ones_like(tokens_BT),  # else they take token 0 for padding
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert our_BT.tolist() == their_BT[:, tokens_BT.shape[1] :].tolist()


def test_bfloat16_saved_here_is_bfloat16_there_with_float32_router_biases(
    make_model: MakeModel, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path, dtype=torch.bfloat16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
    assert theirs.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_the_official_model_type_changes_nothing_but_its_name(make_model: MakeModel, tmp_path: Path) -> None:
    # transformers has no class for kimi_k2, and DeepseekV3ForCausalLM leaves the experts of such a folder unread
    # (5.23), so what can be compared is that the folder equals the one that it does read.
    for model_type in ("kimi_k2", "deepseek_v3"):
        make_model().save_pretrained(tmp_path / model_type, model_type=model_type)
    official, theirs = tmp_path / "kimi_k2", tmp_path / "deepseek_v3"
    assert (official / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    renamed = (official / "config.json").read_text().replace('"kimi_k2"', '"deepseek_v3"')
    assert renamed == (theirs / "config.json").read_text()
    assert K2Model.from_pretrained(official).config == K2Model.from_pretrained(theirs).config
