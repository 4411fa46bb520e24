"""Bytes of a model's weights, tensor by tensor and as each GPU of a layout holds them.

Source of what is stored how: the tensors of the public checkpoints of DeepSeek-V3 and Kimi K2. In block FP8 every
projection is e4m3 with a float32 scale per block of 128 × 128, partial blocks included; embedding, head, router and
norms are bfloat16; the router's correction bias is float32. Source of what is split how: the parallel layers of vLLM
and SGLang, which agree: low-rank inputs, router and norms are on every GPU; what has heads is split by heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from chogori.deploy.checkpoint import FP8_BLOCK, Checkpoint, WeightFormat
from chogori.model.accounting import DTYPE_BYTES
from chogori.model.config import K2Config

Kind = Literal[
    "embedding and head", "attention", "dense feed-forward", "routed experts", "shared experts", "routers and norms"
]
Split = Literal["heads", "dense", "shared", "experts", "vocabulary", "whole"]
"""Along what a tensor can be divided among GPUs; "whole" cannot be."""

SCALE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some tensors of one kind that are divided alike."""

    kind: Kind
    split: Split
    bytes: int


def matrix_bytes(rows: int, columns: int, format: WeightFormat) -> int:
    """Bytes of one projection, FP8 scales included."""
    if format == "fp8":
        return rows * columns + SCALE_BYTES * -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK)
    return rows * columns * DTYPE_BYTES[format]


def plain_bytes(format: WeightFormat) -> int:
    """Bytes of one number outside the projections."""
    return DTYPE_BYTES["bfloat16" if format == "fp8" else format]


def layer_parts(sizes: K2Config, format: WeightFormat, *, sparse: bool) -> tuple[Part, ...]:
    """Everything that one block stores."""
    width, heads, latent = sizes.hidden_size, sizes.num_heads, sizes.kv_lora_rank
    rank = sizes.q_lora_rank
    queries = heads * sizes.qk_head_dim
    by_head = (
        matrix_bytes(queries, rank or width, format)
        + matrix_bytes(heads * (sizes.qk_nope_head_dim + sizes.v_head_dim), latent, format)
        + matrix_bytes(width, heads * sizes.v_head_dim, format)
    )
    low_rank = matrix_bytes(latent + sizes.qk_rope_head_dim, width, format)
    if rank is not None:
        low_rank += matrix_bytes(rank, width, format)
    norms = (2 * width + latent + (rank or 0)) * plain_bytes(format)
    attention = (
        Part(kind="attention", split="heads", bytes=by_head),
        Part(kind="attention", split="whole", bytes=low_rank),
        Part(kind="routers and norms", split="whole", bytes=norms),
    )
    if not sparse:
        dense = _feed_forward(width, sizes.dense_ffn_size, format)
        return (*attention, Part(kind="dense feed-forward", split="dense", bytes=dense))
    shared = sizes.num_shared_experts and _feed_forward(width, sizes.num_shared_experts * sizes.expert_ffn_size, format)
    return (
        *attention,
        Part(kind="routers and norms", split="whole", bytes=sizes.num_experts * (width * plain_bytes(format) + 4)),
        Part(kind="shared experts", split="shared", bytes=shared),
        Part(kind="routed experts", split="experts", bytes=sizes.num_experts * expert_bytes(sizes, format)),
    )


def expert_bytes(sizes: K2Config, format: WeightFormat) -> int:
    """Bytes of one routed expert."""
    return _feed_forward(sizes.hidden_size, sizes.expert_ffn_size, format)


def first_parts(sizes: K2Config, format: WeightFormat) -> tuple[Part, ...]:
    """What stands before the first block."""
    table = sizes.vocab_size * sizes.hidden_size * plain_bytes(format)
    return (Part(kind="embedding and head", split="vocabulary", bytes=table),)


def last_parts(sizes: K2Config, format: WeightFormat) -> tuple[Part, ...]:
    """What stands after the last block."""
    norm = Part(kind="routers and norms", split="whole", bytes=sizes.hidden_size * plain_bytes(format))
    return (*first_parts(sizes, format), norm)


def all_parts(checkpoint: Checkpoint) -> Iterator[Part]:
    """Every tensor of the model."""
    yield from first_parts(checkpoint.sizes, checkpoint.format)
    for layer in range(checkpoint.sizes.num_layers):
        sparse = layer >= checkpoint.sizes.num_dense_layers
        yield from layer_parts(checkpoint.sizes, checkpoint.format, sparse=sparse)
    yield from last_parts(checkpoint.sizes, checkpoint.format)


def total_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all weights, as stored: what a download takes and one copy of the model occupies."""
    return sum(part.bytes for part in all_parts(checkpoint))


def _feed_forward(width: int, inner: int, format: WeightFormat) -> int:
    return 2 * matrix_bytes(inner, width, format) + matrix_bytes(width, inner, format)
