"""How many parameters, operations and bytes a K2Config means, in closed form. Loads no torch.

`count_parameters` equals what the model really has (a test compares both for every preset). Where the field counts
differently, the definition is stated at the number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chogori.errors import ConfigError
from chogori.model.config import K2Config

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Numbers of trained parameters by kind. The router's correction bias is a buffer and stands apart."""

    embedding: int
    """Input embedding table."""
    head: int
    """Output head (untied)."""
    attention: int
    """Projections of multi-head latent attention, all layers, without their norms."""
    dense_ffn: int
    """Feed-forward of the leading dense layers."""
    routed_experts: int
    """All routed experts of all layers."""
    active_routed_experts: int
    """The routed experts that one token visits, all layers."""
    shared_experts: int
    """Shared experts, all layers."""
    router: int
    """Router matrices, all layers."""
    norms: int
    """Weights of all RMSNorms."""
    router_bias: int
    """Correction biases of the routers: stored in the weight files, not trained by gradient, not in `total`."""

    @property
    def total(self) -> int:
        """Every trained parameter."""
        return self._outside_experts + self.routed_experts

    @property
    def active(self) -> int:
        """What takes part in one token: all but the routed experts it does not visit (embedding and head included)."""
        return self._outside_experts + self.active_routed_experts

    @property
    def active_matmul(self) -> int:
        """Parameters that one token is multiplied by: `active` without the embedding (a lookup) and the norms."""
        return self.active - self.embedding - self.norms

    @property
    def stored(self) -> int:
        """Numbers in the weight files: `total` and the routers' correction biases."""
        return self.total + self.router_bias

    @property
    def muon(self) -> int:
        """Parameters that MuonClip updates as matrices: all but embedding, head and norms."""
        return self.total - self.embedding - self.head - self.norms

    @property
    def _outside_experts(self) -> int:
        feed_forward = self.dense_ffn + self.shared_experts + self.router
        return self.embedding + self.head + self.attention + feed_forward + self.norms


def count_parameters(config: K2Config) -> ParameterCount:
    """Count the parameters of `config` by kind."""
    width, heads, latent = config.hidden_size, config.num_heads, config.kv_lora_rank
    query_width = heads * config.qk_head_dim
    rank = config.q_lora_rank
    query = width * query_width if rank is None else width * rank + rank * query_width
    attention = (
        query
        + width * (latent + config.qk_rope_head_dim)
        + latent * heads * (config.qk_nope_head_dim + config.v_head_dim)
        + heads * config.v_head_dim * width
    )
    norms_per_layer = 2 * width + latent + (rank or 0)
    expert = 3 * width * config.expert_ffn_size
    sparse = config.num_sparse_layers
    return ParameterCount(
        embedding=config.vocab_size * width,
        head=config.vocab_size * width,
        attention=config.num_layers * attention,
        dense_ffn=config.num_dense_layers * 3 * width * config.dense_ffn_size,
        routed_experts=sparse * config.num_experts * expert,
        active_routed_experts=sparse * config.num_experts_per_token * expert,
        shared_experts=sparse * config.num_shared_experts * expert,
        router=sparse * config.num_experts * width,
        norms=config.num_layers * norms_per_layer + width,
        router_bias=sparse * config.num_experts,
    )


def flops_per_token(config: K2Config, sequence_length: int, *, backward: bool = True) -> int:
    """Floating-point operations per token, forward and backward, averaged over a causal sequence.

    Two per parameter that the token is multiplied by and two per element of the attention logits and of the weighted
    sum of values, over the (T + 1) / 2 keys that a token sees on average, in the expanded form that training uses;
    the backward pass costs twice the forward. Recomputation, norms, softmax and the optimizer are not counted.
    """
    if sequence_length < 1:
        raise ConfigError(f"sequence_length is {sequence_length}; expected at least 1")
    per_key = 2 * config.num_layers * config.num_heads * (config.qk_head_dim + config.v_head_dim)
    forward = 2 * count_parameters(config).active_matmul + per_key * (sequence_length + 1) // 2
    return 3 * forward if backward else forward


OptimizerName = Literal["muonclip", "muon", "adamw", "none"]


@dataclass(frozen=True, kw_only=True)
class MemoryItem:
    """One kind of memory."""

    kind: str
    """What it holds, such as "weights"."""
    bytes: int
    """Its size in bytes."""
    basis: str
    """How the size follows, in words."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory of one process that holds the whole model."""

    items: tuple[MemoryItem, ...]
    """By kind; kinds that the plan does not need are absent."""
    cache_bytes_per_token: int
    """What one token of context keeps in the latent cache, all layers, in the compute type."""

    @property
    def total_bytes(self) -> int:
        """All kinds together."""
        return sum(item.bytes for item in self.items)

    def bytes_of(self, kind: str) -> int:
        """Bytes of one kind, 0 where the plan has none."""
        return sum(item.bytes for item in self.items if item.kind == kind)


def memory_plan(
    config: K2Config,
    *,
    batch_size: int,
    sequence_length: int,
    weight_dtype: str = "float32",
    compute_dtype: str = "bfloat16",
    optimizer: OptimizerName = "muonclip",
) -> MemoryPlan:
    """Memory for training on batches of `batch_size` × `sequence_length` tokens, by kind.

    `optimizer="none"` plans decoding instead: weights, and the latent cache of the batch at full length. Gradients
    and optimizer states have the type of the weights. The activations are an estimate without recomputation (see
    `_activation_numbers`), within 15 % of what autograd keeps for the small presets; everything else is exact.
    """
    if batch_size < 1 or sequence_length < 1:
        raise ConfigError(f"batch {batch_size} × {sequence_length} tokens; expected both at least 1")
    weight_bytes, compute_bytes = _bytes_of(weight_dtype), _bytes_of(compute_dtype)
    count = count_parameters(config)
    num_tokens = batch_size * sequence_length
    cache_per_token = config.num_layers * config.cache_numbers_per_token_and_layer * compute_bytes
    # The correction bias stays float32 in every form of the model.
    weights = MemoryItem(
        kind="weights",
        bytes=count.total * weight_bytes + count.router_bias * 4,
        basis=f"{count.total:,} parameters in {weight_dtype}",
    )
    if optimizer == "none":
        cache = MemoryItem(
            kind="latent cache",
            bytes=num_tokens * cache_per_token,
            basis=f"{config.cache_numbers_per_token_and_layer} numbers per token and layer in {compute_dtype}",
        )
        return MemoryPlan(items=(weights, cache), cache_bytes_per_token=cache_per_token)
    items = [
        weights,
        MemoryItem(kind="gradients", bytes=count.total * weight_bytes, basis=f"one per parameter in {weight_dtype}"),
    ]
    num_muon = 0 if optimizer == "adamw" else count.muon
    if num_muon:
        items.append(
            MemoryItem(kind="Muon momentum", bytes=num_muon * weight_bytes, basis=f"one per element, {num_muon:,}")
        )
    num_adamw = count.total - num_muon
    items.append(
        MemoryItem(kind="AdamW states", bytes=2 * num_adamw * weight_bytes, basis=f"two per parameter, {num_adamw:,}")
    )
    if compute_dtype != weight_dtype:
        items.append(
            MemoryItem(
                kind="compute copies",
                bytes=(count.total - count.norms - count.embedding) * compute_bytes,
                basis=f"matrices once more in {compute_dtype}, kept for the backward pass",
            )
        )
    numbers = _activation_numbers(config)
    items.append(
        MemoryItem(
            kind="activations",
            bytes=num_tokens * numbers * compute_bytes + count.head * 4,
            basis=f"estimate: {numbers:,} numbers per token in {compute_dtype}, {num_tokens:,} tokens, and the head's "
            "gradient, which the loss computes in the forward pass",
        )
    )
    return MemoryPlan(items=tuple(items), cache_bytes_per_token=cache_per_token)


def _activation_numbers(config: K2Config) -> int:
    """Numbers per token kept for the backward pass, in units of the compute type: what each product reads.

    Per layer: inputs of the two norms and their outputs; the compressed queries before and after their norm; queries,
    keys, values and the attention output per head; the latent before and after its norm; in the feed-forward the
    input, gate, up and their product, for each expert that the token visits.
    """
    width, heads = config.hidden_size, config.num_heads
    attention = (
        4 * width
        + 2 * (config.q_lora_rank or 0)
        + 2 * config.kv_lora_rank
        + heads * (2 * config.qk_head_dim + 2 * config.v_head_dim)
    )
    dense = 3 * config.dense_ffn_size
    visited = config.num_experts_per_token * (2 * width + 3 * config.expert_ffn_size)
    shared = config.num_shared_experts * 3 * config.expert_ffn_size
    sparse = visited + shared + config.num_experts
    return (
        config.num_layers * attention + config.num_dense_layers * dense + config.num_sparse_layers * sparse + 2 * width
    )


def _bytes_of(dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]
