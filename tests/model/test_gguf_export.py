"""A GGUF file read back by gguf's own reader: every tensor is the model's, every key is what llama.cpp's loader needs.

That llama.cpp itself computes the same logits from such files is checked by benchmarks/llama_cpp_parity.py.
"""

import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader

from chogori.errors import ConfigError, StorageError, WeightsError
from chogori.model import K2Config, K2Model, YarnConfig
from chogori.model.gguf_export import GGUF_TYPES, GgufType, save_gguf
from chogori.model.gguf_vocabulary import GgufVocabulary

MakeModel = Callable[..., K2Model]

VOCABULARY = GgufVocabulary(
    base_tokens=["a", "b", "Ġ", "ab", "Ġab"],
    special_tokens=["[BOS]", "[EOS]", "<|im_end|>", "[UNK]", "[PAD]"],
    merges=[("a", "b"), ("Ġ", "ab")],
    bos="[BOS]",
    eos="[EOS]",
    end_of_turn="<|im_end|>",
    unknown="[UNK]",
    padding="[PAD]",
    chat_template="{{ messages[0]['content'] }}",
)


def save(model: K2Model, path: Path, dtype: GgufType = "f32") -> GGUFReader:
    save_gguf(model, path, vocabulary=VOCABULARY, name="small", dtype=dtype)
    return GGUFReader(path)


def values_of(reader: GGUFReader) -> dict[str, torch.Tensor]:
    """Every tensor as float32, in the order of dimensions that torch has."""
    values: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        value = gguf.dequantize(np.array(tensor.data), tensor.tensor_type)
        values[tensor.name] = torch.from_numpy(value.reshape([int(size) for size in reversed(tensor.shape)]))
    return values


def keys_of(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def back_to_official(config: K2Config, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names and shapes of the model's state, from the file alone: what a reader of the format would do."""
    parts = {
        "attn_norm.weight": "input_layernorm.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_q_a.weight": "self_attn.q_a_proj.weight",
        "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
        "attn_q_b.weight": "self_attn.q_b_proj.weight",
        "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
        "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_gate.weight": "mlp.gate_proj.weight",
        "ffn_up.weight": "mlp.up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
        "ffn_gate_inp.weight": "mlp.gate.weight",
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        "ffn_gate_exps.weight": "mlp.experts.gate_proj",
        "ffn_up_exps.weight": "mlp.experts.up_proj",
        "ffn_down_exps.weight": "mlp.experts.down_proj",
        "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
        "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
        "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
    }
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    whole |= {"output.weight": "lm_head.weight"}
    state: dict[str, torch.Tensor] = {}
    for name, value in values.items():
        if name in whole:
            state[whole[name]] = value
            continue
        _, layer, part = name.split(".", 2)
        if part in parts:
            state[f"model.layers.{layer}.{parts[part]}"] = value
        elif part == "attn_k_b.weight":
            # Head by head: keys' rows, then values' rows; the keys' are transposed in the file.
            k_HKN, v_HVK = value, values[f"blk.{layer}.attn_v_b.weight"]
            heads = [torch.cat([k_KN.T, v_VK]) for k_KN, v_VK in zip(k_HKN, v_HVK, strict=True)]
            state[f"model.layers.{layer}.self_attn.kv_b_proj.weight"] = torch.cat(heads)
        else:
            assert part == "attn_v_b.weight", name
    return state


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, {"num_dense_layers": 0, "num_shared_experts": 2}])
def test_every_tensor_comes_back_exactly(
    make_model: MakeModel, small: K2Config, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = make_model(small.replace(**changes))
    state = back_to_official(model.config, values_of(save(model, tmp_path / "m.gguf")))
    expected = model.state_dict()
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_matrices_have_the_asked_type_and_all_else_is_f32(
    make_model: MakeModel, small: K2Config, tmp_path: Path, dtype: GgufType
) -> None:
    config = small.replace(
        hidden_size=64, q_lora_rank=32, kv_lora_rank=64, dense_ffn_size=96, expert_ffn_size=32,
        qk_nope_head_dim=32, v_head_dim=32,
    )  # fmt: skip
    model = make_model(config)
    reader = save(model, tmp_path / "m.gguf", dtype)
    asked = GGMLQuantizationType[dtype.upper()]
    for tensor in reader.tensors:
        always_f32 = len(tensor.shape) == 1 or "ffn_gate_inp" in tensor.name
        assert tensor.tensor_type == (GGMLQuantizationType.F32 if always_f32 else asked), tensor.name
    file_type = gguf.LlamaFileType(keys_of(reader)["general.file_type"])
    assert file_type.name == ("ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}")

    state = back_to_official(config, values_of(reader))
    for name, value in model.state_dict().items():
        if dtype == "q8_0" and value.ndim > 1 and not name.endswith("gate.weight"):
            # A block's scale is its largest value / 127, so rounding moves no value by more than half of that; the
            # scale itself is an f16, off by at most 2⁻¹¹ of 127 steps. Blocks run along rows of the file, which for
            # the keys' half of kv_b are columns here: the largest of all bounds both.
            bound = value.abs().max() / 127 * (0.5 + 127 * 2.0**-11)
            assert (state[name] - value).abs().max() <= bound, name
        elif value.ndim == 1 or name.endswith("gate.weight"):
            assert torch.equal(state[name], value), name
        else:
            stored = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
            assert torch.equal(state[name], value.to(stored).float()), name


def test_q8_0_says_which_matrices_it_could_not_hold(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()  # its latent of 20, its queries of 24 and its experts of 16 fill no block of 32
    saved = save_gguf(model, tmp_path / "m.gguf", vocabulary=VOCABULARY, name="small", dtype="q8_0")
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert saved.left_f16 == tuple(name for name, kind in kinds.items() if kind == GGMLQuantizationType.F16)
    assert "blk.0.attn_q_b.weight" in saved.left_f16
    assert kinds["blk.0.attn_q_a.weight"] == GGMLQuantizationType.Q8_0
    assert saved.num_tensors == len(kinds)
    assert saved.num_bytes == (tmp_path / "m.gguf").stat().st_size


def test_kimi_k2_has_every_key_that_llama_cpps_converter_writes(make_model: MakeModel, tmp_path: Path) -> None:
    # Small where a test must be, K2 in all else.
    published = K2Config.preset("kimi-k2")
    config = published.replace(
        vocab_size=16, hidden_size=8, num_layers=2, dense_ffn_size=8, expert_ffn_size=4, num_experts=16, num_heads=2
    )
    keys = keys_of(save(make_model(config), tmp_path / "m.gguf"))
    arch = {name.removeprefix("deepseek2."): value for name, value in keys.items() if name.startswith("deepseek2.")}
    assert arch.pop("rope.scaling.yarn_log_multiplier") == pytest.approx(0.1)
    assert arch.pop("expert_weights_scale") == pytest.approx(2.827)
    assert arch.pop("attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert arch == {
        "block_count": 2,
        "context_length": 131072,
        "embedding_length": 8,
        "feed_forward_length": 8,
        "vocab_size": 16,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64,
        "rope.freq_base": 50000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
        "rope.scaling.yarn_beta_fast": 1.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "leading_dense_block_count": 1,
        "expert_count": 16,
        "expert_used_count": 8,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "expert_shared_count": 1,
        "expert_feed_forward_length": 4,
        "expert_weights_norm": True,
        "expert_gating_func": 2,  # sigmoid
    }
    general = {name: value for name, value in keys.items() if name.startswith("general.")}
    assert general == {
        "general.architecture": "deepseek2",
        "general.type": "model",
        "general.name": "small",
        "general.file_type": 0,
        "general.quantization_version": 2,
    }


def test_variants_have_their_keys(make_model: MakeModel, small: K2Config, tmp_path: Path) -> None:
    config = small.replace(
        q_lora_rank=None, num_expert_groups=4, num_groups_per_token=2, normalize_routing_weights=False
    )
    keys = keys_of(save(make_model(config), tmp_path / "m.gguf"))
    assert keys["deepseek2.attention.q_lora_rank"] == 0
    assert keys["deepseek2.expert_group_count"] == 4
    assert keys["deepseek2.expert_group_used_count"] == 2
    assert keys["deepseek2.expert_weights_norm"] is False
    assert not any("rope.scaling" in name for name in keys)
    # All groups may be visited: that is no limit, and llama.cpp's loader stops at such a pair of numbers.
    keys = keys_of(save(make_model(config.replace(num_groups_per_token=4)), tmp_path / "m.gguf"))
    assert (keys["deepseek2.expert_group_count"], keys["deepseek2.expert_group_used_count"]) == (1, 1)
    # The loader expects fewer groups than experts, so a lone expert has none.
    lone = small.replace(num_experts=1, num_experts_per_token=1)
    assert not any("expert_group" in name for name in keys_of(save(make_model(lone), tmp_path / "m.gguf")))


def test_vocabulary_comes_back(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    keys = keys_of(save(model, tmp_path / "m.gguf"))
    tokenizer = {
        name.removeprefix("tokenizer."): value for name, value in keys.items() if name.startswith("tokenizer.")
    }
    rest = range(10, model.config.vocab_size)
    assert tokenizer == {
        "ggml.model": "gpt2",
        "ggml.pre": "kimi-k2",
        "ggml.tokens": [
            *VOCABULARY.base_tokens, *VOCABULARY.special_tokens, *(f"[PAD{number}]" for number in rest)
        ],
        "ggml.token_type": [1] * 5 + [3] * 5 + [5] * len(rest),  # normal, control, unused
        "ggml.merges": ["a b", "Ġ ab"],
        "ggml.bos_token_id": 5,
        "ggml.eos_token_id": 6,
        "ggml.eot_token_id": 7,
        "ggml.unknown_token_id": 8,
        "ggml.padding_token_id": 9,
        "ggml.add_bos_token": False,
        "chat_template": "{{ messages[0]['content'] }}",
    }  # fmt: skip


def test_bfloat16_weights_are_written_as_they_are(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model().to(torch.bfloat16)
    state = back_to_official(model.config, values_of(save(model, tmp_path / "m.gguf", "bf16")))
    assert all(torch.equal(state[name], value.float()) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_shared_experts": 0}, "model.num_shared_experts is 0; llama.cpp expects at least one"),
        ({"num_layers": 27}, "model.q_lora_rank is 24 with model.num_layers = 27; llama.cpp takes"),
        ({"yarn": YarnConfig(factor=4.0, mscale=0.7)}, "yarn.mscale is 0.7 and yarn.mscale_all_dim is 1.0; llama.cpp"),
        ({"yarn": YarnConfig(factor=4.0, mscale=0.0, mscale_all_dim=0.0)}, "yarn.mscale is 0.0"),
        ({"vocab_size": 9}, "the vocabulary has 10 tokens, above model.vocab_size = 9"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused(
    make_model: MakeModel, small: K2Config, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        save(make_model(small.replace(**changes)), tmp_path / "m.gguf")
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_unknown_type_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'q4_k'; expected one of f32, bf16, f16, q8_0"):
        save(make_model(), tmp_path / "m.gguf", "q4_k")  # pyright: ignore[reportArgumentType]


def test_special_token_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocabulary.eos is '\[END\]'; expected one of the 1 special tokens"):
        GgufVocabulary(
            base_tokens=[], special_tokens=["[BOS]"], merges=[], bos="[BOS]", eos="[END]", end_of_turn="[BOS]",
            unknown="[BOS]", padding="[BOS]", chat_template=None,
        )  # fmt: skip


def test_value_beyond_f16_is_refused_and_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[3, 4] = -70_000.0
    with pytest.raises(WeightsError, match=r"output\.weight holds 70000, and f16 ends at 65504; export as bf16 or f32"):
        save(model, tmp_path / "m.gguf", "f16")
    assert list(tmp_path.iterdir()) == []


def test_model_without_values_is_refused(small: K2Config, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = K2Model(small)
    with pytest.raises(WeightsError, match="the model is on the meta device"):
        save(model, tmp_path / "m.gguf")


@contextmanager
def largest_file(num_bytes: int) -> Generator[None]:
    """Let the kernel refuse any file above this size: a real write error in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [100, 20_000])  # within the vocabulary, within the tensors
def test_full_disk_leaves_the_old_file_as_it_was(make_model: MakeModel, tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with largest_file(num_bytes), pytest.raises(StorageError, match="could not write the model to"):
        save(make_model(), path)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"m.gguf": b"old"}


def test_folders_are_made(make_model: MakeModel, tmp_path: Path) -> None:
    save(make_model(), tmp_path / "new" / "folder" / "m.gguf")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["m.gguf"]
