import dataclasses

import pytest

from chogori.errors import ConfigError
from chogori.model import K2Config, YarnConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "model.hidden_size is 0; expected at least 1"),
        ({"num_dense_layers": 4}, "model.num_dense_layers is 4; expected 0 to model.num_layers = 3"),
        ({"num_shared_experts": -1}, "model.num_shared_experts is -1; expected 0 or more"),
        ({"num_experts_per_token": 9}, "model.num_experts_per_token is 9, above model.num_experts = 8; lower"),
        ({"num_expert_groups": 3}, "model.num_expert_groups is 3 and does not divide model.num_experts = 8"),
        ({"num_groups_per_token": 2}, "model.num_groups_per_token is 2, above model.num_expert_groups = 1"),
        ({"num_expert_groups": 4}, "model.num_experts_per_token is 3, but the 1 groups .* hold only 2 experts"),
        ({"num_expert_groups": 8, "num_groups_per_token": 4}, "leaves one expert a group"),
        ({"qk_rope_head_dim": 7}, "model.qk_rope_head_dim is 7; expected an even number"),
        ({"q_lora_rank": 0}, "model.q_lora_rank is 0; expected at least 1, or None"),
        ({"rms_norm_eps": 0.0}, "model.rms_norm_eps is 0.0; expected a small positive number"),
        ({"rope_theta": 1.0}, "model.rope_theta is 1.0; expected above 1"),
        ({"width": 3}, "K2Config has no field 'width'; its fields are bos_token_id, "),
    ],
)
def test_a_config_that_cannot_be_names_the_field(small: K2Config, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small.replace(**changes)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no preset is named 'k3'; the presets are kimi-k2, moonlight-16b-a3b, nano"):
        K2Config.preset("k3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0.5}, "yarn.factor is 0.5; expected at least 1"),
        ({"original_max_position_embeddings": 0}, "yarn.original_max_position_embeddings is 0; expected at least 1"),
    ],
)
def test_a_yarn_that_cannot_be_names_the_field(yarn: YarnConfig, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(yarn, **changes)


def test_a_config_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"yarn\.factor"):
        YarnConfig(factor=0.0)
