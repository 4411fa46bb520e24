import json

import pytest
import transformers

from chogori.errors import ConfigError
from chogori.model import K2Config, YarnConfig
from chogori.model.config import PRESETS
from chogori.model.hf_config import from_hf, to_hf

# config.json of moonshotai/Kimi-K2-Instruct, without the keys that name files and versions.
OFFICIAL_K2 = json.loads("""{
  "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "aux_loss_alpha": 0.001, "bos_token_id": 163584, "eos_token_id": 163586, "ep_size": 1, "first_k_dense_replace": 1,
  "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432,
  "kv_lora_rank": 512, "max_position_embeddings": 131072, "model_type": "kimi_k2", "moe_intermediate_size": 2048,
  "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 384, "n_shared_experts": 1, "norm_topk_prob": true,
  "num_attention_heads": 64, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 64,
  "num_nextn_predict_layers": 0, "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64,
  "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                          "weight_block_size": [128, 128]},
  "rms_norm_eps": 1e-06, "rope_theta": 50000.0, "routed_scaling_factor": 2.827,
  "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                   "original_max_position_embeddings": 4096, "type": "yarn"},
  "scoring_func": "sigmoid", "seq_aux": true, "tie_word_embeddings": false, "topk_group": 1,
  "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": true, "v_head_dim": 128, "vocab_size": 163840
}""")


def test_kimi_k2_is_the_official_config() -> None:
    # Apart from how its weights are stored: our preset trains without the sequence-wise loss, and nothing is in FP8.
    expected = {key: value for key, value in OFFICIAL_K2.items() if key not in ("ep_size", "quantization_config")}
    assert to_hf(K2Config.preset("kimi-k2")) == expected | {"aux_loss_alpha": 0.0}
    assert from_hf(OFFICIAL_K2) == K2Config.preset("kimi-k2").replace(sequence_balance_weight=0.001)


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_comes_back_from_json(name: str) -> None:
    config = K2Config.preset(name)
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize("with_yarn", [False, True])
def test_transformers_reads_it_and_what_transformers_writes_is_read(
    small: K2Config, yarn: YarnConfig, with_yarn: bool
) -> None:
    config = small.replace(yarn=yarn if with_yarn else None, bos_token_id=1, eos_token_id=2)
    theirs = transformers.DeepseekV3Config.from_dict(to_hf(config, model_type="deepseek_v3"))
    written = json.loads(theirs.to_json_string())
    assert "rope_parameters" in written
    assert "rope_theta" not in written
    assert from_hf(written) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; expected one of deepseek_v3, kimi_k2"),
        ({"model_type": None}, "model_type is None"),
        ({"attention_bias": True}, "attention_bias is True; this model has only False"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; this model has only False"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'; this model has only 'sigmoid'"),
        ({"topk_method": "group_limited_greedy"}, "topk_method is 'group_limited_greedy'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; this model has only 'silu'"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2; this model has only 1"),
        ({"rope_interleave": False}, "rope_interleave is False"),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2; .* equal to num_attention_heads = 64"),
        ({"seq_aux": False}, "seq_aux is False with aux_loss_alpha 0.001; .* set aux_loss_alpha to 0"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; expected a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; expected a whole number"),
        ({"norm_topk_prob": None}, "norm_topk_prob is None; expected true or false"),
        ({"routed_scaling_factor": "2"}, "routed_scaling_factor is '2'; expected a number"),
        ({"eos_token_id": [1, 2]}, "eos_token_id is .* expected one id; .* generation_config.json"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; expected an object or null"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type is 'linear'; .* 'yarn' and 'default'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings is missing"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing; expected a number"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": False}}, "rope_scaling.truncate is False"),
        ({"rope_parameters": {"rope_type": "yarn", "attention_factor": 2.0}}, "rope_parameters.attention_factor is 2"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 0.7}}, "mscale 0.7 with mscale_all_dim 0.0"),
        ({"num_experts_per_tok": 385}, "num_experts_per_token is 385, above model.num_experts = 384"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_hf(OFFICIAL_K2 | changes)


def test_a_missing_key_is_named() -> None:
    values = {key: value for key, value in OFFICIAL_K2.items() if key != "kv_lora_rank"}
    with pytest.raises(ConfigError, match=r"config.json: kv_lora_rank is missing; expected a whole number"):
        from_hf(values)


def test_missing_yarn_fields_mean_what_they_mean_in_transformers() -> None:
    values = OFFICIAL_K2 | {
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    }
    expected = YarnConfig(factor=40.0, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.0)
    assert from_hf(values).yarn == expected


def test_a_wrong_model_type_is_refused_on_writing() -> None:
    with pytest.raises(ConfigError, match=r"model_type is 'kimi'; expected one of deepseek_v3, kimi_k2"):
        to_hf(K2Config.preset("tiny"), model_type="kimi")  # pyright: ignore[reportArgumentType]
