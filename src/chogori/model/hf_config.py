"""K2Config to and from Hugging Face's config.json, in the official names of DeepSeek-V3 and Kimi K2. Loads no torch.

Source of the names: config.json of moonshotai/Kimi-K2-Instruct and moonshotai/Moonlight-16B-A3B. Reading also accepts
what transformers 5 writes (`rope_parameters` instead of `rope_theta` and `rope_scaling`, `dtype` instead of
`torch_dtype`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from chogori.errors import ConfigError
from chogori.model.config import K2Config, YarnConfig

ModelType = Literal["deepseek_v3", "kimi_k2"]
"""Two names of one architecture. transformers knows only the first; Moonshot's own files have the second."""

MODEL_TYPES: tuple[ModelType, ...] = ("deepseek_v3", "kimi_k2")

# What a config.json may say about parts of which this model has one form only. A missing key means that form.
_ONLY_FORM: dict[str, tuple[object, ...]] = {
    "attention_bias": (False, None),
    "attention_dropout": (0, None),
    "hidden_act": ("silu",),
    "moe_layer_freq": (1,),
    "partial_rotary_factor": (1, None),
    "rope_interleave": (True, None),
    "scoring_func": ("sigmoid",),
    "tie_word_embeddings": (False,),
    "topk_method": ("noaux_tc",),
}


def to_hf(config: K2Config, *, model_type: ModelType = "kimi_k2", dtype: str = "bfloat16") -> dict[str, object]:
    """The contents of config.json for `config`, with the official keys; `dtype` is the type of the stored weights."""
    if model_type not in MODEL_TYPES:
        raise ConfigError(f"model_type is {model_type!r}; expected one of {', '.join(MODEL_TYPES)}")
    yarn = config.yarn
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": config.sequence_balance_weight,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "first_k_dense_replace": config.num_dense_layers,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.dense_ffn_size,
        "kv_lora_rank": config.kv_lora_rank,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": model_type,
        "moe_intermediate_size": config.expert_ffn_size,
        "moe_layer_freq": 1,
        "n_group": config.num_expert_groups,
        "n_routed_experts": config.num_experts,
        "n_shared_experts": config.num_shared_experts,
        "norm_topk_prob": config.normalize_routing_weights,
        "num_attention_heads": config.num_heads,
        "num_experts_per_tok": config.num_experts_per_token,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_heads,
        "num_nextn_predict_layers": 0,
        "pretraining_tp": 1,
        "q_lora_rank": config.q_lora_rank,
        "qk_nope_head_dim": config.qk_nope_head_dim,
        "qk_rope_head_dim": config.qk_rope_head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None
        if yarn is None
        else {
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "factor": yarn.factor,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "type": "yarn",
        },
        "rope_theta": config.rope_theta,
        "routed_scaling_factor": config.routed_scaling_factor,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": config.num_groups_per_token,
        "topk_method": "noaux_tc",
        "torch_dtype": dtype,
        "use_cache": True,
        "v_head_dim": config.v_head_dim,
        "vocab_size": config.vocab_size,
    }


def from_hf(values: Mapping[str, object]) -> K2Config:
    """The K2Config that a config.json describes. Keys that do not change the model's arithmetic are not read.

    Raises ConfigError, naming key and value, for another architecture or a variant that this model does not have.
    """
    model_type = values.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ConfigError(
            f"config.json: model_type is {model_type!r}; expected one of {', '.join(MODEL_TYPES)}: "
            "only the DeepSeek-V3 architecture, which is Kimi K2's, can be read"
        )
    for key, accepted in _ONLY_FORM.items():
        if key in values and values[key] not in accepted:
            raise ConfigError(
                f"config.json: {key} is {values[key]!r}; this model has only {accepted[0]!r}, "
                "so the weights would not mean the same here"
            )
    num_heads = _integer(values, "num_attention_heads")
    num_key_heads = values.get("num_key_value_heads")
    if num_key_heads not in (None, num_heads):
        raise ConfigError(
            f"config.json: num_key_value_heads is {num_key_heads!r}; multi-head latent attention expects it equal to "
            f"num_attention_heads = {num_heads}"
        )
    rope_theta, yarn = _rope(values)
    return K2Config(
        vocab_size=_integer(values, "vocab_size"),
        hidden_size=_integer(values, "hidden_size"),
        num_layers=_integer(values, "num_hidden_layers"),
        num_dense_layers=_integer(values, "first_k_dense_replace"),
        dense_ffn_size=_integer(values, "intermediate_size"),
        expert_ffn_size=_integer(values, "moe_intermediate_size"),
        num_experts=_integer(values, "n_routed_experts"),
        num_experts_per_token=_integer(values, "num_experts_per_tok"),
        num_shared_experts=_optional_integer(values, "n_shared_experts") or 0,
        num_expert_groups=_optional_integer(values, "n_group", absent=1) or 1,
        num_groups_per_token=_optional_integer(values, "topk_group", absent=1) or 1,
        routed_scaling_factor=_number(values, "routed_scaling_factor"),
        normalize_routing_weights=_flag(values, "norm_topk_prob"),
        sequence_balance_weight=_sequence_balance_weight(values),
        num_heads=num_heads,
        q_lora_rank=_optional_integer(values, "q_lora_rank"),
        kv_lora_rank=_integer(values, "kv_lora_rank"),
        qk_nope_head_dim=_integer(values, "qk_nope_head_dim"),
        qk_rope_head_dim=_integer(values, "qk_rope_head_dim"),
        v_head_dim=_integer(values, "v_head_dim"),
        rope_theta=rope_theta,
        yarn=yarn,
        max_position_embeddings=_integer(values, "max_position_embeddings"),
        rms_norm_eps=_number(values, "rms_norm_eps"),
        initializer_range=_number(values, "initializer_range", absent=0.02),
        bos_token_id=_token_id(values, "bos_token_id"),
        eos_token_id=_token_id(values, "eos_token_id"),
    )


def _rope(values: Mapping[str, object]) -> tuple[float, YarnConfig | None]:
    """Base and context extension, from `rope_scaling` beside `rope_theta`, or from transformers 5's joint record."""
    key = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    record = values.get(key)
    if record is not None and not isinstance(record, Mapping):
        raise ConfigError(f"config.json: {key} is {record!r}; expected an object or null")
    rope = cast("Mapping[str, object]", record or {})
    theta = _number(rope, "rope_theta", within=key) if "rope_theta" in rope else _number(values, "rope_theta")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise ConfigError(f"config.json: {key}.type is {kind!r}; this model has only 'yarn' and 'default'")
    for name, only in (("attention_factor", None), ("truncate", True), ("partial_rotary_factor", 1)):
        if rope.get(name, only) != only:
            raise ConfigError(f"config.json: {key}.{name} is {rope[name]!r}; this model has only {only!r}")
    # A missing mscale_all_dim means "no correction of the attention scale" in DeepSeek's code and in transformers.
    mscale = _number(rope, "mscale", absent=1.0, within=key)
    mscale_all_dim = _number(rope, "mscale_all_dim", absent=0.0, within=key)
    if (mscale == 0 or mscale_all_dim == 0) and mscale != 1:
        raise ConfigError(
            f"config.json: {key} has mscale {mscale} with mscale_all_dim {mscale_all_dim}; DeepSeek's code and "
            "transformers disagree about what that means; expected both above 0, or mscale 1"
        )
    original = "original_max_position_embeddings"
    return theta, YarnConfig(
        factor=_number(rope, "factor", within=key),
        original_max_position_embeddings=_integer(rope, original, within=key),
        beta_fast=_number(rope, "beta_fast", absent=32.0, within=key),
        beta_slow=_number(rope, "beta_slow", absent=1.0, within=key),
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
    )


def _sequence_balance_weight(values: Mapping[str, object]) -> float:
    weight = _number(values, "aux_loss_alpha", absent=0.0)
    if weight and values.get("seq_aux") is False:
        raise ConfigError(
            f"config.json: seq_aux is False with aux_loss_alpha {weight}; this model has only the sequence-wise "
            "balance loss; set aux_loss_alpha to 0 to train without one"
        )
    return weight


def _token_id(values: Mapping[str, object], key: str) -> int | None:
    value = values.get(key)
    if isinstance(value, list):
        ids = cast("list[object]", value)
        if len(ids) != 1:
            raise ConfigError(
                f"config.json: {key} is {value!r}; expected one id; further stop ids belong in generation_config.json"
            )
        return _optional_integer({key: ids[0]}, key)
    return _optional_integer(values, key)


def _integer(values: Mapping[str, object], key: str, *, within: str | None = None) -> int:
    path = key if within is None else f"{within}.{key}"
    if key not in values:
        raise ConfigError(f"config.json: {path} is missing; expected a whole number")
    value = values[key]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"config.json: {path} is {value!r}; expected a whole number")
    return value


def _optional_integer(values: Mapping[str, object], key: str, *, absent: int | None = None) -> int | None:
    if key not in values:
        return absent
    return None if values[key] is None else _integer(values, key)


def _number(values: Mapping[str, object], key: str, *, absent: float | None = None, within: str | None = None) -> float:
    path = key if within is None else f"{within}.{key}"
    value = values.get(key, absent)
    if value is None:
        value = absent
    if not isinstance(value, int | float) or isinstance(value, bool):
        found = f"is {value!r}" if key in values else "is missing"
        raise ConfigError(f"config.json: {path} {found}; expected a number")
    return float(value)


def _flag(values: Mapping[str, object], key: str) -> bool:
    value = values.get(key)
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {key} is {value!r}; expected true or false")
    return value
