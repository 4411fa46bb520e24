"""A time limit ends a run early, once, and a continued run repeats the decision."""

import json

import pytest

from chogori.errors import RunError
from chogori.train.budget import Budget
from chogori.train.config import ScheduleConfig


@pytest.fixture
def config(make_config):
    return make_config(
        steps=1000, time_limit_s=100.0, schedule=ScheduleConfig(kind="wsd", warmup_steps=5, decay_share=0.25)
    )


def run(budget, seconds_per_step, first_step=1):
    """Take steps of equal length until the budget says stop; returns the last step and when it was decided."""
    step, decided_at = first_step - 1, None
    while step < budget.last_step:
        step += 1
        if budget.consider(step, step * seconds_per_step):
            decided_at = step
    return step, decided_at


def test_a_slow_run_ends_within_its_limit_with_its_whole_decay(config, tmp_path):
    budget = Budget(config, tmp_path / "budget.json")
    last, decided_at = run(budget, seconds_per_step=1.0)
    assert decided_at is not None
    # 0.25 of all steps decay, rounded down.
    assert last - decided_at == decided_at // 3
    assert 90 <= last <= 100
    assert budget.num_decay_steps == pytest.approx(last - decided_at, abs=1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.35, 0.5, 0.9, 1.0])
def test_no_decay_reaches_into_steps_taken_before_the_decision(make_config, tmp_path, share):
    # Otherwise a continued run would take them again at another rate.
    schedule = ScheduleConfig(kind="wsd", warmup_steps=5, decay_share=share)
    for limit_s in range(10, 120):
        config = make_config(steps=1000, time_limit_s=float(limit_s), schedule=schedule)
        budget = Budget(config, tmp_path / f"budget-{limit_s}.json")
        last, decided_at = run(budget, seconds_per_step=1.0)
        if decided_at is not None:
            assert last - budget.num_decay_steps >= decided_at


def test_a_fast_run_takes_all_its_steps(config, tmp_path):
    budget = Budget(config, tmp_path / "budget.json")
    assert run(budget, seconds_per_step=0.01) == (1000, None)
    assert not (tmp_path / "budget.json").exists()


def test_a_continued_run_repeats_the_decision_whatever_its_speed(config, tmp_path):
    file = tmp_path / "budget.json"
    last, decided_at = run(Budget(config, file), seconds_per_step=1.0)
    assert decided_at is not None
    assert json.loads(file.read_text()) == {"at_step": decided_at, "last_step": last}
    for speed in (0.001, 50.0):
        assert run(Budget(config, file), speed, first_step=decided_at - 10) == (last, None)


def test_without_a_limit_nothing_is_decided(make_config, tmp_path):
    budget = Budget(make_config(steps=50), tmp_path / "budget.json")
    assert run(budget, seconds_per_step=1e6) == (50, None)


def test_a_damaged_decision_is_reported(config, tmp_path):
    file = tmp_path / "budget.json"
    file.write_text("{")
    with pytest.raises(RunError, match=r"budget.json is damaged .*; delete it"):
        Budget(config, file)
