"""Which tensors a weight folder holds, and which part of which parameter each one is. Loads no torch.

Official files store every expert's matrices apart; the model stacks the experts of a block in one 3-D parameter.
All other names are equal. Source of the names: moonshotai/Kimi-K2-Instruct, model.safetensors.index.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chogori.model.config import K2Config

ROUTER_BIAS = "mlp.gate.e_score_correction_bias"
"""End of the names that stay float32 in every form of the weights."""

_EXPERT_MATRICES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a parameter that a file's tensor, or some of its rows, is copied to."""

    parameter: str
    """Name in the model's state."""
    expert: int | None = None
    """Index in the stack of experts; None for the whole parameter."""
    rows: tuple[int, int] | None = None
    """First and last + 1 of the tensor's second-last dimension; None for all."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a weight folder."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def stored_tensors(config: K2Config) -> dict[str, StoredTensor]:
    """Every tensor of the official form by name, in the order in which files are written."""
    return dict(_all_tensors(config))


def fused_expert_tensors(config: K2Config, layer: int) -> dict[str, StoredTensor]:
    """The routed experts of one block as transformers 5 holds them in memory, gate and up rows joined."""
    prefix = f"model.layers.{layer}.mlp.experts"
    count, width, inner = config.num_experts, config.hidden_size, config.expert_ffn_size
    return {
        f"{prefix}.gate_up_proj": StoredTensor(
            shape=(count, 2 * inner, width),
            pieces=(
                Piece(parameter=f"{prefix}.gate_proj", rows=(0, inner)),
                Piece(parameter=f"{prefix}.up_proj", rows=(inner, 2 * inner)),
            ),
        ),
        f"{prefix}.down_proj": StoredTensor(
            shape=(count, width, inner), pieces=(Piece(parameter=f"{prefix}.down_proj"),)
        ),
    }


def _all_tensors(config: K2Config) -> Iterator[tuple[str, StoredTensor]]:
    width = config.hidden_size
    yield _whole("model.embed_tokens.weight", config.vocab_size, width)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        yield from _attention_tensors(config, f"{prefix}.self_attn")
        if layer < config.num_dense_layers:
            yield from _feed_forward_tensors(f"{prefix}.mlp", width, config.dense_ffn_size)
        else:
            yield from _sparse_tensors(config, f"{prefix}.mlp")
        yield _whole(f"{prefix}.input_layernorm.weight", width)
        yield _whole(f"{prefix}.post_attention_layernorm.weight", width)
    yield _whole("model.norm.weight", width)
    yield _whole("lm_head.weight", config.vocab_size, width)


def _attention_tensors(config: K2Config, prefix: str) -> Iterator[tuple[str, StoredTensor]]:
    width, heads, latent, rank = config.hidden_size, config.num_heads, config.kv_lora_rank, config.q_lora_rank
    if rank is None:
        yield _whole(f"{prefix}.q_proj.weight", heads * config.qk_head_dim, width)
    else:
        yield _whole(f"{prefix}.q_a_proj.weight", rank, width)
        yield _whole(f"{prefix}.q_a_layernorm.weight", rank)
        yield _whole(f"{prefix}.q_b_proj.weight", heads * config.qk_head_dim, rank)
    yield _whole(f"{prefix}.kv_a_proj_with_mqa.weight", latent + config.qk_rope_head_dim, width)
    yield _whole(f"{prefix}.kv_a_layernorm.weight", latent)
    yield _whole(f"{prefix}.kv_b_proj.weight", heads * (config.qk_nope_head_dim + config.v_head_dim), latent)
    yield _whole(f"{prefix}.o_proj.weight", width, heads * config.v_head_dim)


def _feed_forward_tensors(prefix: str, width: int, inner: int) -> Iterator[tuple[str, StoredTensor]]:
    yield _whole(f"{prefix}.gate_proj.weight", inner, width)
    yield _whole(f"{prefix}.up_proj.weight", inner, width)
    yield _whole(f"{prefix}.down_proj.weight", width, inner)


def _sparse_tensors(config: K2Config, prefix: str) -> Iterator[tuple[str, StoredTensor]]:
    width, inner = config.hidden_size, config.expert_ffn_size
    yield _whole(f"{prefix}.gate.weight", config.num_experts, width)
    yield _whole(f"{prefix}.gate.e_score_correction_bias", config.num_experts)
    for expert in range(config.num_experts):
        for matrix in _EXPERT_MATRICES:
            shape = (width, inner) if matrix == "down_proj" else (inner, width)
            piece = Piece(parameter=f"{prefix}.experts.{matrix}", expert=expert)
            yield f"{prefix}.experts.{expert}.{matrix}.weight", StoredTensor(shape=shape, pieces=(piece,))
    if config.num_shared_experts:
        yield from _feed_forward_tensors(f"{prefix}.shared_experts", width, config.num_shared_experts * inner)


def _whole(name: str, *shape: int) -> tuple[str, StoredTensor]:
    return name, StoredTensor(shape=shape, pieces=(Piece(parameter=name),))
