import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from chogori.errors import ConfigError
from chogori.model import K2Config, K2Model, moe
from chogori.model.accounting import count_parameters, flops_per_token, memory_plan
from chogori.model.config import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_the_closed_form_equals_the_model(name: str) -> None:
    config = K2Config.preset(name)
    with torch.device("meta"):
        model = K2Model(config)
    count = count_parameters(config)
    sizes = {parameter_name: parameter.numel() for parameter_name, parameter in model.named_parameters()}

    def total_of(*parts: str) -> int:
        return sum(size for name, size in sizes.items() if any(part in name for part in parts))

    assert count.total == sum(sizes.values())
    assert count.stored == sum(tensor.numel() for tensor in model.state_dict().values())
    assert count.embedding == total_of("embed_tokens")
    assert count.head == total_of("lm_head")
    assert count.norms == total_of("norm")
    assert count.attention == total_of("self_attn") - total_of("self_attn.q_a_layernorm", "self_attn.kv_a_layernorm")
    assert count.routed_experts == total_of(".mlp.experts.")
    assert count.shared_experts == total_of("shared_experts")
    assert count.router == total_of(".mlp.gate.weight")
    assert count.dense_ffn == total_of("layers.0.mlp.")
    assert count.muon == sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and "embed_tokens" not in name and "lm_head" not in name
    )


def test_kimi_k2_has_1026_billion_parameters_and_33_billion_active() -> None:
    count = count_parameters(K2Config.preset("kimi-k2"))
    assert count.total == 1_026_408_209_408
    # What the official files hold: the routers' biases of 60 layers × 384 experts are in them too.
    assert count.stored == 1_026_408_232_448
    assert count.active == 32_861_477_888
    assert count.active_matmul == 31_686_066_176


def test_moonlight_has_16_billion_parameters_and_3_billion_active() -> None:
    count = count_parameters(K2Config.preset("moonlight-16b-a3b"))
    assert count.total == 15_960_108_544
    assert count.active == 2_914_774_528


def test_operations_equal_what_torch_counts(small: K2Config, monkeypatch: pytest.MonkeyPatch) -> None:
    # Attention is left to the formula: torch counts the kernel's full square. Experts are plain products here, all of
    # them visited by every token: torch counts a product that writes into `out` twice.
    def plain_experts(x_TD: Tensor, _: Tensor, weights_TK: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor) -> Tensor:
        out_TD = torch.zeros_like(x_TD)
        for gate_up_XD, down_DF, weight_T in zip(gate_up_EXD, down_EDF, weights_TK.unbind(1), strict=True):
            gate_TF, up_TF = (x_TD @ gate_up_XD.T).chunk(2, dim=-1)
            out_TD += (functional.silu(gate_TF) * up_TF) @ down_DF.T * weight_T.unsqueeze(-1)
        return out_TD

    monkeypatch.setattr(moe, "routed_experts", plain_experts)
    config = small.replace(num_experts=4, num_experts_per_token=4)
    model, length = K2Model(config, seed=0), 16
    tokens_BT = torch.randint(0, config.vocab_size, (2, length))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens_BT)
    products = sum(
        count for operation, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(operation)
    )
    keys = config.num_layers * config.num_heads * 2 * (config.qk_head_dim + config.v_head_dim) * (length + 1) // 2
    forward = flops_per_token(config, length, backward=False)
    assert forward - keys == products / tokens_BT.numel()
    assert flops_per_token(config, length) == 3 * forward


def test_operations_of_kimi_k2_at_4096_tokens() -> None:
    # 6 · 31.69e9 for the matrices, and 61 layers · 64 heads · (192 + 128) · 2 · 2048.5 keys · 3 for attention.
    assert flops_per_token(K2Config.preset("kimi-k2"), 4096) == 6 * 31_686_066_176 + 3 * 61 * 64 * 640 * 4097 // 2


def test_memory_of_kimi_k2_decoding_is_576_numbers_per_token_and_layer() -> None:
    config = K2Config.preset("kimi-k2")
    plan = memory_plan(config, batch_size=1, sequence_length=131_072, weight_dtype="bfloat16", optimizer="none")
    assert plan.cache_bytes_per_token == 576 * 61 * 2
    assert plan.bytes_of("latent cache") == 131_072 * 576 * 61 * 2
    assert plan.bytes_of("weights") == 2 * 1_026_408_209_408 + 4 * 60 * 384
    assert plan.total_bytes == plan.bytes_of("latent cache") + plan.bytes_of("weights")


@pytest.mark.parametrize("optimizer", ["muonclip", "adamw"])
def test_optimizer_states_are_one_number_for_muon_and_two_for_adamw(optimizer: str) -> None:
    config = K2Config.preset("nano")
    count = count_parameters(config)
    plan = memory_plan(config, batch_size=8, sequence_length=512, optimizer=optimizer)  # pyright: ignore[reportArgumentType]
    num_muon = count.muon if optimizer == "muonclip" else 0
    assert plan.bytes_of("Muon momentum") == 4 * num_muon
    assert plan.bytes_of("AdamW states") == 8 * (count.total - num_muon)
    assert plan.bytes_of("gradients") == 4 * count.total
    assert plan.total_bytes == sum(item.bytes for item in plan.items)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "batch_size", "sequence_length"), [("nano", 2, 512), ("tiny", 4, 128)])
def test_activations_are_within_15_percent_of_what_autograd_keeps(
    name: str, batch_size: int, sequence_length: int, dtype: str
) -> None:
    config = K2Config.preset(name)
    model = K2Model(config, seed=0).train()
    model.compute_dtype = getattr(torch, dtype)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor  # held, so that its address is not used again
        return tensor

    tokens_BT = torch.randint(0, config.vocab_size, (batch_size, sequence_length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(tokens_BT, tokens_BT.roll(-1, 1))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    plan = memory_plan(config, batch_size=batch_size, sequence_length=sequence_length, compute_dtype=dtype)
    planned = plan.bytes_of("activations") + plan.bytes_of("compute copies")
    assert planned == pytest.approx(measured, rel=0.15)


def test_bad_arguments_are_named(small: K2Config) -> None:
    with pytest.raises(ConfigError, match="sequence_length is 0; expected at least 1"):
        flops_per_token(small, 0)
    with pytest.raises(ConfigError, match="batch 0 × 5 tokens; expected both at least 1"):
        memory_plan(small, batch_size=0, sequence_length=5)
    with pytest.raises(ConfigError, match="dtype is 'int4'; expected one of float32, bfloat16"):
        memory_plan(small, batch_size=1, sequence_length=5, weight_dtype="int4")


def test_accounting_and_configs_load_no_torch() -> None:
    code = "import sys, chogori.model.accounting, chogori.model.hf_config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
