"""The large recipes against the published figures they claim to follow."""

import pytest

from chogori.model.config import K2Config
from chogori.recipes import RECIPES, kimi_k2, moonlight_16b_a3b
from chogori.train.config_json import from_json, to_json


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_its_file_form(name: str) -> None:
    config = RECIPES[name]()
    assert from_json(type(config), to_json(config)) == config
    assert config.out.name == name


def test_kimi_k2_follows_the_report() -> None:
    """Technical report, §2.5: 15.5 T tokens, batches of 67 M, 500 steps of warm-up, 10 T tokens at 2e-4, then 2e-5."""
    config = kimi_k2()
    assert config.model == K2Config.preset("kimi-k2")
    assert config.tokens_per_step == pytest.approx(67e6, rel=0.01)
    assert config.total_steps * config.tokens_per_step == pytest.approx(15.5e12, rel=1e-4)
    assert config.schedule.warmup_steps == 500
    assert (1 - config.schedule.decay_share) * 15.5e12 == pytest.approx(10e12)
    assert config.optim.lr == 2e-4
    assert config.optim.lr * config.schedule.final_ratio == pytest.approx(2e-5)
    assert config.optim.weight_decay == 0.1
    assert config.optim.qk_clip.threshold == 100
    assert config.sequence_length == 4096


def test_moonlight_warms_up_over_33_billion_tokens() -> None:
    config = moonlight_16b_a3b()
    assert config.schedule.warmup_steps * config.tokens_per_step == pytest.approx(33e9, rel=0.02)
    assert config.optim.lr * config.schedule.final_ratio == pytest.approx(4.2e-5)
