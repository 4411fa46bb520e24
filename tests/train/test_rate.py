"""Learning rates of whole runs, against values worked out by hand."""

import math

import pytest

from chogori.train.budget import Budget
from chogori.train.config import ScheduleConfig
from chogori.train.rate import rate_multiplier


def rates(config, tmp_path):
    budget = Budget(config, tmp_path / "budget.json")
    return [
        rate_multiplier(config.schedule, step, budget.last_step, budget.num_decay_steps)
        for step in range(budget.last_step)
    ]


def test_wsd_warms_up_holds_and_decays_as_a_cosine(make_config, tmp_path):
    schedule = ScheduleConfig(kind="wsd", warmup_steps=3, decay_share=0.4, final_ratio=0.1)
    found = rates(make_config(steps=10, schedule=schedule), tmp_path)
    # Warm-up k of 3 learns at k / 4; the last 4 of 10 steps fall from 1 towards 0.1 along half a cosine.
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, *falling], rel=1e-12)


def test_cosine_falls_from_the_end_of_the_warm_up(make_config, tmp_path):
    schedule = ScheduleConfig(kind="cosine", warmup_steps=1, final_ratio=0.0)
    found = rates(make_config(steps=5, schedule=schedule), tmp_path)
    assert found == pytest.approx([0.5, *((1 + math.cos(math.pi * k / 4)) / 2 for k in range(4))], rel=1e-12)


def test_constant_holds(make_config, tmp_path):
    schedule = ScheduleConfig(kind="constant", warmup_steps=1)
    assert rates(make_config(steps=4, schedule=schedule), tmp_path) == [0.5, 1, 1, 1]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_extreme_decay_shares(make_config, tmp_path, share):
    schedule = ScheduleConfig(kind="wsd", warmup_steps=2, decay_share=share, final_ratio=0.5)
    found = rates(make_config(steps=6, schedule=schedule), tmp_path)
    if share == 0:
        assert found[2:] == [1, 1, 1, 1]
    else:  # everything after the warm-up falls
        assert found[2] == 1
        assert found[2:] == sorted(found[2:], reverse=True)
        assert found[-1] < 0.6


def test_the_stable_phase_does_not_depend_on_the_end(make_config, tmp_path):
    short, long = (rates(make_config(steps=steps), tmp_path) for steps in (40, 400))
    assert short[:20] == long[:20]
