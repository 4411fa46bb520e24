"""TrainConfig: what it refuses, in which words, and what it derives."""

import subprocess
import sys

import pytest

from chogori.errors import ConfigError
from chogori.train.config import ScheduleConfig


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"steps": None}, "neither of steps and tokens is given"),
        ({"tokens": 10}, "both of steps and tokens is given"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"time_limit_s": 0.0}, "time_limit_s is 0.0; expected seconds above 0"),
        ({"grad_clip_norm": 0.0}, "grad_clip_norm is 0.0; expected above 0, or None"),
        ({"router_bias_rate": 1.0}, "router_bias_rate is 1.0; expected 0 to below 1"),
        ({"sequence_length": 513}, "sequence_length is 513, above model.max_position_embeddings = 512"),
        ({"device": "gpu"}, 'device is "gpu"; expected "auto", "cpu", "cuda"'),
        ({"steps": 2}, "schedule.warmup_steps is 2, but the run has 2 steps"),
        ({"stepz": 2}, "TrainConfig has no field 'stepz'"),
    ],
)
def test_refusals_name_the_field(make_config, changes, words):
    with pytest.raises(ConfigError, match=words):
        make_config(**changes)


def test_a_vocabulary_larger_than_the_model_is_refused(make_config):
    config = make_config()
    with pytest.raises(ConfigError, match=r"data\.vocab_size is 300, above model\.vocab_size = 299"):
        config.replace(model=config.model.replace(vocab_size=299))


def test_a_cosine_cannot_end_early(make_config):
    with pytest.raises(ConfigError, match=r'time_limit_s is given with schedule\.kind "cosine"'):
        make_config(time_limit_s=5.0, schedule=ScheduleConfig(kind="cosine", warmup_steps=1))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("warmup_steps", -1, "schedule.warmup_steps is -1"),
        ("decay_share", 1.5, "schedule.decay_share is 1.5; expected a share"),
        ("final_ratio", 2, "schedule.final_ratio is 2"),
    ],
)
def test_schedule_refusals_name_the_field(field, value, words):
    with pytest.raises(ConfigError, match=words):
        ScheduleConfig(**{field: value})


def test_tokens_become_whole_steps(make_config):
    config = make_config(steps=None, tokens=64 * 5 + 1)
    assert config.tokens_per_step == 64
    assert config.total_steps == 6


def test_configs_and_run_folders_load_no_torch():
    code = (
        "import sys, chogori.train, chogori.train.config, chogori.train.run_folder, chogori.train.progress; "
        "chogori.train.TrainConfig; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
