"""What each GPU of a layout holds, and how many sequences fit beside the weights.

Weights and cache are exact. The workspace is an estimate: what the largest forward pass keeps at one time, and a fixed
amount for CUDA graphs and the buffers of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chogori.deploy.checkpoint import Checkpoint
from chogori.deploy.gpus import GIB
from chogori.deploy.layout import Layout, stages
from chogori.deploy.weights import Part, expert_bytes, first_parts, last_parts, layer_parts
from chogori.model.accounting import MemoryItem

CACHE_NUMBER_BYTES = 2
"""The latent cache is kept in 16 bits by every engine unless told otherwise."""
CACHE_PAGE_TOKENS = 64
"""Tokens of one page: what the MLA kernels of vLLM and SGLang use on Hopper."""
GRAPH_BYTES = 3 * GIB
"""Assumed for CUDA graphs, communication buffers and the CUDA context inside the engine's share."""
MAX_SEQUENCES = 256
"""Sequences whose logits are computed at one time: vLLM's default, and that of Kimi K2's deployment guide."""
EXPANDED_TOKENS = 65_536
"""Most cached tokens that are expanded to keys and values at one time while a prompt is read (vLLM's MLA workspace)."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What an engine takes of a GPU."""

    fraction: float
    """Of the memory that `of` names."""
    of: Literal["all", "static", "free"]
    """all: weights, workspace and cache together stay within the fraction (vLLM). static: weights and cache do, and the
    workspace needs the rest (SGLang). free: the cache takes the fraction of what weights and workspace leave
    (TensorRT-LLM)."""
    prefill_tokens: int = 8192
    """Prompt tokens that one forward pass reads, on each data-parallel rank."""


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """The fullest GPU of a layout."""

    items: tuple[MemoryItem, ...]
    """Weights by kind, then the workspace."""
    memory_bytes: int
    """Of the GPU."""
    cache_room_bytes: int
    """Left for the latent cache within the engine's share; negative where not even the weights fit."""
    cache_bytes_per_token: int
    """On this GPU."""
    sequence_bytes: int
    """Cache of one sequence of the asked context on this GPU."""
    data: int
    """Data-parallel ranks, each with a cache of its own."""

    @property
    def weight_bytes(self) -> int:
        """All weights on this GPU."""
        return sum(item.bytes for item in self.items if item.kind != WORKSPACE)

    @property
    def num_sequences(self) -> int:
        """Sequences of the asked context that fit at one time, all ranks together."""
        return max(0, self.cache_room_bytes // self.sequence_bytes) * self.data

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit at one time, all ranks together."""
        return max(0, self.cache_room_bytes // self.cache_bytes_per_token) * self.data

    def missing_bytes(self, concurrency: int) -> int:
        """What this GPU lacks to hold its part of `concurrency` sequences; 0 where it lacks nothing."""
        on_each_rank = -(-concurrency // self.data)
        return max(0, on_each_rank * self.sequence_bytes - self.cache_room_bytes)


WORKSPACE = "workspace"


def gpu_memory(checkpoint: Checkpoint, layout: Layout, memory_bytes: int, share: Share, context: int) -> GpuMemory:
    """Memory of the GPU that has the least room for sequences under `layout`.

    Args:
        checkpoint: the model.
        layout: how it is divided.
        memory_bytes: memory of one GPU.
        share: what the engine takes of it.
        context: tokens of one sequence.
    """
    counts = stages(checkpoint.sizes.num_layers, layout.pipeline)
    plans: list[GpuMemory] = []
    start = 0
    for stage, num_layers in enumerate(counts):
        parts = _stage_parts(checkpoint, start, num_layers, first=stage == 0, last=stage == len(counts) - 1)
        plans.append(_one_gpu(checkpoint, layout, memory_bytes, share, context, parts, num_layers))
        start += num_layers
    return min(plans, key=lambda plan: plan.cache_room_bytes / plan.sequence_bytes)


def expert_memory(checkpoint: Checkpoint, bits_per_weight: float | None) -> int:
    """Bytes of the routed experts where processors compute them; in the checkpoint's own form without
    `bits_per_weight`."""
    sizes = checkpoint.sizes
    num_experts = sizes.num_sparse_layers * sizes.num_experts
    if bits_per_weight is None:
        return num_experts * expert_bytes(sizes, checkpoint.format)
    return round(num_experts * 3 * sizes.hidden_size * sizes.expert_ffn_size * bits_per_weight / 8)


def _stage_parts(checkpoint: Checkpoint, start: int, num_layers: int, *, first: bool, last: bool) -> list[Part]:
    sizes, format = checkpoint.sizes, checkpoint.format
    parts = list(first_parts(sizes, format)) if first else []
    for layer in range(start, start + num_layers):
        parts.extend(layer_parts(sizes, format, sparse=layer >= sizes.num_dense_layers))
    if last:
        parts.extend(last_parts(sizes, format))
    return parts


def _one_gpu(
    checkpoint: Checkpoint,
    layout: Layout,
    memory_bytes: int,
    share: Share,
    context: int,
    parts: list[Part],
    num_layers: int,
) -> GpuMemory:
    items = _weights(checkpoint, layout, parts, num_layers)
    weights = sum(item.bytes for item in items)
    workspace = _workspace(checkpoint, layout, share.prefill_tokens, context)
    if share.of == "all":
        room = int(share.fraction * memory_bytes) - weights - workspace.bytes
    elif share.of == "static":
        room = min(int(share.fraction * memory_bytes), memory_bytes - workspace.bytes) - weights
    else:
        left = memory_bytes - weights - workspace.bytes
        room = int(share.fraction * left) if left > 0 else left
    per_token = checkpoint.sizes.cache_numbers_per_token_and_layer * num_layers * CACHE_NUMBER_BYTES
    pages = -(-context // CACHE_PAGE_TOKENS)
    return GpuMemory(
        items=(*items, workspace),
        memory_bytes=memory_bytes,
        cache_room_bytes=room,
        cache_bytes_per_token=per_token,
        sequence_bytes=pages * CACHE_PAGE_TOKENS * per_token,
        data=layout.data,
    )


def _weights(checkpoint: Checkpoint, layout: Layout, parts: list[Part], num_layers: int) -> list[MemoryItem]:
    totals: dict[str, int] = {}
    divisors: dict[str, int] = {}
    for part in parts:
        divisor = layout.divisor(part.split)
        if divisor:
            totals[part.kind] = totals.get(part.kind, 0) + -(-part.bytes // divisor)
            divisors[part.kind] = max(divisors.get(part.kind, 1), divisor)
    items = [
        MemoryItem(
            kind=kind,
            bytes=num_bytes,
            basis="whole on each GPU" if divisors[kind] == 1 else f"what divides, into {divisors[kind]}",
        )
        for kind, num_bytes in totals.items()
        if num_bytes
    ]
    if checkpoint.format == "fp8":
        sizes = checkpoint.sizes
        numbers = num_layers * sizes.num_heads * (sizes.qk_nope_head_dim + sizes.v_head_dim) * sizes.kv_lora_rank
        absorbed = 2 * numbers // layout.tensor
        basis = "key and value projections in bfloat16, for decoding in the latent space"
        items.append(MemoryItem(kind="absorbed projections", bytes=absorbed, basis=basis))
    return items


def _workspace(checkpoint: Checkpoint, layout: Layout, prefill_tokens: int, context: int) -> MemoryItem:
    """An upper estimate: the block's inputs and outputs, queries, keys and values, and the routed copies of each token
    with their inner activations, all at one time; the logits; the cached context of a prompt, expanded."""
    sizes = checkpoint.sizes
    heads = sizes.num_heads // layout.tensor
    inner = sizes.expert_ffn_size if layout.kind == "dp-ep" else sizes.expert_ffn_size // layout.tensor
    routed = sizes.num_experts_per_token * (2 * sizes.hidden_size + 3 * inner)
    per_token = (
        4 * sizes.hidden_size
        + heads * 2 * (sizes.qk_head_dim + sizes.v_head_dim)
        + max(routed, 3 * sizes.dense_ffn_size // layout.tensor)
    )
    expanded = min(EXPANDED_TOKENS, context) * heads * (sizes.qk_head_dim + sizes.v_head_dim)
    logits = 4 * MAX_SEQUENCES * sizes.vocab_size
    return MemoryItem(
        kind=WORKSPACE,
        bytes=2 * (prefill_tokens * per_token + expanded) + logits + GRAPH_BYTES,
        basis=f"estimate: a pass over {prefill_tokens:,} tokens; {GRAPH_BYTES // GIB} GiB for CUDA graphs and buffers",
    )
