"""The sizes of a Kimi K2 model, as one frozen record, and the named presets. Loads no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

from chogori.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN context extension (arXiv 2309.00071) as DeepSeek-V3 and Kimi K2 apply it."""

    factor: float
    """How many times longer the context becomes."""
    original_max_position_embeddings: int = 4096
    """Context length of pretraining, in tokens."""
    beta_fast: float = 1.0
    """Rotations over the original context above which a frequency is left as it was."""
    beta_slow: float = 1.0
    """Rotations over the original context below which a frequency is divided by `factor`."""
    mscale: float = 1.0
    """Weight of the logarithmic length correction put on cosine and sine."""
    mscale_all_dim: float = 1.0
    """Weight of the same correction put on the attention scale."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError(f"yarn.factor is {self.factor}; expected at least 1 (1 leaves the context as it is)")
        if self.original_max_position_embeddings < 1:
            raise ConfigError(
                f"yarn.original_max_position_embeddings is {self.original_max_position_embeddings}; expected at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class K2Config:
    """Sizes of one model. Field names are those of the official config.json, except counts, which are `num_…`."""

    vocab_size: int
    """Rows of the embedding and of the output head."""
    hidden_size: int
    """Width D of the residual stream."""
    num_layers: int
    """Transformer blocks, dense and sparse together."""
    num_dense_layers: int = 1
    """Leading blocks whose feed-forward is dense."""
    dense_ffn_size: int
    """Inner width of a dense feed-forward."""
    expert_ffn_size: int
    """Inner width F of one expert."""
    num_experts: int
    """Routed experts per sparse block."""
    num_experts_per_token: int
    """Routed experts that each token visits."""
    num_shared_experts: int = 1
    """Experts that every token visits; stored as one feed-forward of that many times `expert_ffn_size`."""
    num_expert_groups: int = 1
    """Groups for group-limited routing (DeepSeek-V3 uses 8; Kimi K2 uses 1, that is none)."""
    num_groups_per_token: int = 1
    """Groups a token may visit under group-limited routing."""
    routed_scaling_factor: float = 1.0
    """Multiplies the normalised routing weights."""
    normalize_routing_weights: bool = True
    """Divide the chosen scores by their sum (`norm_topk_prob`)."""
    sequence_balance_weight: float = 0.0
    """Weight of the sequence-wise balance loss (DeepSeek-V3 report, eq. 17); 0 leaves balancing to the router bias."""
    num_heads: int
    """Attention heads H."""
    q_lora_rank: int | None
    """Rank of the query compression; None for a full query projection."""
    kv_lora_rank: int
    """Width of the latent that stands for keys and values in the cache."""
    qk_nope_head_dim: int
    """Per head, the part of queries and keys without position."""
    qk_rope_head_dim: int
    """Per head, the rotary part of queries; the rotary key of this width is shared by all heads. Even."""
    v_head_dim: int
    """Width of one value head."""
    rope_theta: float = 50_000.0
    """Base of the rotary frequencies."""
    yarn: YarnConfig | None = None
    """Context extension; None for plain rotary embedding."""
    max_position_embeddings: int = 4096
    """Longest context in tokens."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square inside RMSNorm."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights (0.006 in the DeepSeek-V3 report; 0.02 in the official config.json)."""
    bos_token_id: int | None = None
    """Beginning-of-text id written to config.json."""
    eos_token_id: int | None = None
    """End-of-text id written to config.json."""

    def __post_init__(self) -> None:
        positive = (
            "vocab_size hidden_size num_layers dense_ffn_size expert_ffn_size num_experts num_experts_per_token "
            "num_expert_groups num_groups_per_token num_heads kv_lora_rank qk_nope_head_dim qk_rope_head_dim "
            "v_head_dim max_position_embeddings"
        )
        for name in positive.split():
            value = cast(int, getattr(self, name))
            if value < 1:
                raise ConfigError(f"model.{name} is {value}; expected at least 1")
        if not 0 <= self.num_dense_layers <= self.num_layers:
            raise ConfigError(
                f"model.num_dense_layers is {self.num_dense_layers}; expected 0 to model.num_layers = {self.num_layers}"
            )
        if self.num_shared_experts < 0:
            raise ConfigError(f"model.num_shared_experts is {self.num_shared_experts}; expected 0 or more")
        if self.num_experts_per_token > self.num_experts:
            raise ConfigError(
                f"model.num_experts_per_token is {self.num_experts_per_token}, above model.num_experts = "
                f"{self.num_experts}; lower the first or raise the second"
            )
        if self.num_experts % self.num_expert_groups:
            raise ConfigError(
                f"model.num_expert_groups is {self.num_expert_groups} and does not divide model.num_experts = "
                f"{self.num_experts}"
            )
        if self.num_groups_per_token > self.num_expert_groups:
            raise ConfigError(
                f"model.num_groups_per_token is {self.num_groups_per_token}, above model.num_expert_groups = "
                f"{self.num_expert_groups}"
            )
        reachable = self.num_groups_per_token * (self.num_experts // self.num_expert_groups)
        if self.num_experts_per_token > reachable:
            raise ConfigError(
                f"model.num_experts_per_token is {self.num_experts_per_token}, but the {self.num_groups_per_token} "
                f"groups a token may visit hold only {reachable} experts; raise model.num_groups_per_token"
            )
        if self.num_expert_groups > 1 and self.num_experts // self.num_expert_groups < 2:
            raise ConfigError(
                f"model.num_expert_groups is {self.num_expert_groups}, which leaves one expert a group; group-limited "
                "routing scores a group by its two best experts"
            )
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"model.qk_rope_head_dim is {self.qk_rope_head_dim}; expected an even number (RoPE turns pairs)"
            )
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise ConfigError(
                f"model.q_lora_rank is {self.q_lora_rank}; expected at least 1, or None for no compression"
            )
        if self.rms_norm_eps <= 0:
            raise ConfigError(
                f"model.rms_norm_eps is {self.rms_norm_eps}; expected a small positive number such as 1e-6"
            )
        if self.rope_theta <= 1:
            raise ConfigError(f"model.rope_theta is {self.rope_theta}; expected above 1, such as 50000")

    @property
    def num_sparse_layers(self) -> int:
        """Blocks whose feed-forward is a mixture of experts."""
        return self.num_layers - self.num_dense_layers

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head, rotary part included."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_numbers_per_token_and_layer(self) -> int:
        """Numbers the absorbed form keeps per token and layer: the latent and the shared rotary key (576 in K2)."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @classmethod
    def preset(cls, name: str) -> K2Config:
        """A named model: "kimi-k2", "moonlight-16b-a3b", "nano" or "tiny"."""
        if name not in PRESETS:
            raise ConfigError(f"no preset is named {name!r}; the presets are {', '.join(sorted(PRESETS))}")
        return PRESETS[name]

    def replace(self, **changes: object) -> K2Config:
        """The same model with some fields changed; validated again."""
        known = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                raise ConfigError(f"K2Config has no field {name!r}; its fields are {', '.join(sorted(known))}")
        return dataclasses.replace(self, **changes)


# Sizes of kimi-k2 and moonlight-16b-a3b are the official ones; the small models are ours.
PRESETS: dict[str, K2Config] = {
    "kimi-k2": K2Config(
        vocab_size=163_840,
        hidden_size=7168,
        num_layers=61,
        num_dense_layers=1,
        dense_ffn_size=18_432,
        expert_ffn_size=2048,
        num_experts=384,
        num_experts_per_token=8,
        num_shared_experts=1,
        routed_scaling_factor=2.827,
        num_heads=64,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        rope_theta=50_000.0,
        yarn=YarnConfig(factor=32.0, original_max_position_embeddings=4096),
        max_position_embeddings=131_072,
        rms_norm_eps=1e-6,
        bos_token_id=163_584,
        eos_token_id=163_586,
    ),
    "moonlight-16b-a3b": K2Config(
        vocab_size=163_840,
        hidden_size=2048,
        num_layers=27,
        num_dense_layers=1,
        dense_ffn_size=11_264,
        expert_ffn_size=1408,
        num_experts=64,
        num_experts_per_token=6,
        num_shared_experts=2,
        routed_scaling_factor=2.446,
        num_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        rope_theta=50_000.0,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        bos_token_id=163_584,
        eos_token_id=163_586,
    ),
    # Trained by `make run` on two cores in minutes.
    "nano": K2Config(
        vocab_size=8192,
        hidden_size=256,
        num_layers=4,
        dense_ffn_size=512,
        expert_ffn_size=128,
        num_experts=16,
        num_experts_per_token=4,
        routed_scaling_factor=2.5,
        num_heads=8,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        max_position_embeddings=2048,
    ),
    # Small enough for a test to train; every part of the architecture is in it.
    "tiny": K2Config(
        vocab_size=320,
        hidden_size=64,
        num_layers=3,
        dense_ffn_size=128,
        expert_ffn_size=32,
        num_experts=8,
        num_experts_per_token=2,
        routed_scaling_factor=2.0,
        num_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=512,
    ),
}
