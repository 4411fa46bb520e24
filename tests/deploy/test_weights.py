"""Bytes of weights, against an enumeration of every tensor and against what the public checkpoints hold."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from chogori.deploy.checkpoint import Checkpoint, find_checkpoint
from chogori.deploy.weights import all_parts, matrix_bytes, total_bytes
from chogori.model.accounting import count_parameters
from tests.deploy.deepseek_v3 import write_folder

# Numbers by type in the checkpoints, as their pages on the Hugging Face hub state them. DeepSeek-V3's include one layer
# for predicting the token after the next, which no engine loads unless it drafts with it.
DEEPSEEK_V3_NUMBERS = {"fp8": 680_571_043_840, "bfloat16": 3_918_786_560, "float32": 41_555_600}
KIMI_K2_NUMBERS = 1_026_470_731_056
MOONLIGHT_NUMBERS = 15_960_111_936


@pytest.fixture(scope="module")
def deepseek_v3(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return find_checkpoint(str(write_folder(tmp_path_factory.mktemp("models") / "DeepSeek-V3")))


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor but scales, written from the public checkpoints' own lists."""
    sizes = checkpoint.sizes
    yield "model.embed_tokens.weight", (sizes.vocab_size, sizes.hidden_size)
    yield "lm_head.weight", (sizes.vocab_size, sizes.hidden_size)
    yield "model.norm.weight", (sizes.hidden_size,)
    for layer in range(sizes.num_layers):
        for name, shape in layer_tensors(checkpoint, sparse=layer >= sizes.num_dense_layers):
            yield f"model.layers.{layer}.{name}", shape


def layer_tensors(checkpoint: Checkpoint, *, sparse: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    sizes = checkpoint.sizes
    width, heads, rank = sizes.hidden_size, sizes.num_heads, sizes.kv_lora_rank
    queries = heads * (sizes.qk_nope_head_dim + sizes.qk_rope_head_dim)
    yield "input_layernorm.weight", (width,)
    yield "post_attention_layernorm.weight", (width,)
    if sizes.q_lora_rank is None:
        yield "self_attn.q_proj.weight", (queries, width)
    else:
        yield "self_attn.q_a_proj.weight", (sizes.q_lora_rank, width)
        yield "self_attn.q_a_layernorm.weight", (sizes.q_lora_rank,)
        yield "self_attn.q_b_proj.weight", (queries, sizes.q_lora_rank)
    yield "self_attn.kv_a_proj_with_mqa.weight", (rank + sizes.qk_rope_head_dim, width)
    yield "self_attn.kv_a_layernorm.weight", (rank,)
    yield "self_attn.kv_b_proj.weight", (heads * (sizes.qk_nope_head_dim + sizes.v_head_dim), rank)
    yield "self_attn.o_proj.weight", (width, heads * sizes.v_head_dim)
    if not sparse:
        yield from feed_forward("mlp", width, sizes.dense_ffn_size)
        return
    yield "mlp.gate.weight", (sizes.num_experts, width)
    yield "mlp.gate.e_score_correction_bias", (sizes.num_experts,)
    yield from feed_forward("mlp.shared_experts", width, sizes.num_shared_experts * sizes.expert_ffn_size)
    for expert in range(sizes.num_experts):
        yield from feed_forward(f"mlp.experts.{expert}", width, sizes.expert_ffn_size)


def feed_forward(name: str, width: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.gate_proj.weight", (inner, width)
    yield f"{name}.up_proj.weight", (inner, width)
    yield f"{name}.down_proj.weight", (width, inner)


def numbers_by_type(named: Iterator[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Numbers of an FP8 checkpoint: projections in FP8 with float32 scales, biases in float32, the rest in bfloat16."""
    numbers = {"fp8": 0, "bfloat16": 0, "float32": 0}
    for name, shape in named:
        if name.endswith("_bias"):
            numbers["float32"] += math.prod(shape)
        elif "_proj" in name:
            numbers["fp8"] += math.prod(shape)
            numbers["float32"] += math.ceil(shape[0] / 128) * math.ceil(shape[1] / 128)
        else:
            numbers["bfloat16"] += math.prod(shape)
    return numbers


def fp8_bytes(numbers: dict[str, int]) -> int:
    return numbers["fp8"] + 2 * numbers["bfloat16"] + 4 * numbers["float32"]


def test_kimi_k2_is_every_tensor_of_its_checkpoint() -> None:
    checkpoint = find_checkpoint("kimi-k2")
    numbers = numbers_by_type(tensors(checkpoint))
    assert total_bytes(checkpoint) == fp8_bytes(numbers)
    assert sum(numbers.values()) == pytest.approx(KIMI_K2_NUMBERS, rel=1e-8)


def test_deepseek_v3_is_its_published_checkpoint_to_the_byte(deepseek_v3: Checkpoint) -> None:
    """Its additional layer is one sparse block, two norms and a projection before it, an embedding and a head."""
    width, vocabulary = deepseek_v3.sizes.hidden_size, deepseek_v3.sizes.vocab_size
    additional = numbers_by_type(layer_tensors(deepseek_v3, sparse=True))
    additional["bfloat16"] += 2 * vocabulary * width + 2 * width * width + 3 * width
    published = fp8_bytes(DEEPSEEK_V3_NUMBERS)
    assert total_bytes(deepseek_v3) + fp8_bytes(additional) == published
    assert total_bytes(deepseek_v3) == fp8_bytes(numbers_by_type(tensors(deepseek_v3)))


def test_moonlight_is_every_tensor_of_its_checkpoint() -> None:
    checkpoint = find_checkpoint("moonlight-16b-a3b")
    numbers = sum(math.prod(shape) for _, shape in tensors(checkpoint))
    biases = sum(math.prod(shape) for name, shape in tensors(checkpoint) if name.endswith("_bias"))
    assert total_bytes(checkpoint) == 2 * (numbers - biases) + 4 * biases
    assert numbers == pytest.approx(MOONLIGHT_NUMBERS, rel=1e-6)


@pytest.mark.parametrize("preset", ["kimi-k2", "moonlight-16b-a3b", "nano", "tiny"])
def test_bfloat16_is_two_bytes_for_each_parameter(preset: str) -> None:
    checkpoint = find_checkpoint(preset, format="bfloat16")
    count = count_parameters(checkpoint.sizes)
    assert total_bytes(checkpoint) == 2 * count.total + 4 * count.router_bias


def test_kinds_are_those_of_the_parameter_count() -> None:
    """Two accounts that share no line of code."""
    checkpoint = find_checkpoint("kimi-k2", format="bfloat16")
    count = count_parameters(checkpoint.sizes)
    kinds: dict[str, int] = {}
    for part in all_parts(checkpoint):
        kinds[part.kind] = kinds.get(part.kind, 0) + part.bytes
    assert kinds == {
        "embedding and head": 2 * (count.embedding + count.head),
        "attention": 2 * count.attention,
        "dense feed-forward": 2 * count.dense_ffn,
        "routed experts": 2 * count.routed_experts,
        "shared experts": 2 * count.shared_experts,
        "routers and norms": 2 * (count.router + count.norms) + 4 * count.router_bias,
    }


def test_partial_blocks_have_scales_of_their_own() -> None:
    assert matrix_bytes(128, 128, "fp8") == 128 * 128 + 4
    assert matrix_bytes(129, 127, "fp8") == 129 * 127 + 2 * 4
    assert matrix_bytes(3, 5, "bfloat16") == 30


def test_a_folder_is_read_without_its_weights(tmp_path: Path, deepseek_v3: Checkpoint) -> None:
    assert (deepseek_v3.format, deepseek_v3.dialect, deepseek_v3.name) == ("fp8", "deepseek_v3", "DeepSeek-V3")
    assert deepseek_v3.is_folder
    own = write_folder(tmp_path / "own", vocab_size=8192, quantization_config=None, torch_dtype="float32")
    checkpoint = find_checkpoint(str(own))
    assert (checkpoint.stored_format, checkpoint.format, checkpoint.dialect) == ("float32", "bfloat16", "kimi_k2")
