"""The learning rate of a step, from the run's schedule. Loads no torch."""

from __future__ import annotations

from chogori.optim.schedules import WSD, Cosine
from chogori.train.config import ScheduleConfig


def rate_multiplier(schedule: ScheduleConfig, step: int, last_step: int, num_decay_steps: int) -> float:
    """Factor on the configured learning rate for the step that follows `step` others.

    `last_step` is the number of steps of the run, of which "wsd" decays over the last `num_decay_steps`.
    """
    if schedule.kind == "cosine":
        return Cosine(warmup_steps=schedule.warmup_steps, total_steps=last_step, final_ratio=schedule.final_ratio)(step)
    decay_steps = num_decay_steps if schedule.kind == "wsd" else 0
    stable_steps = max(last_step - schedule.warmup_steps, 0) - decay_steps
    final_ratio = schedule.final_ratio if decay_steps else 1.0
    return WSD(
        warmup_steps=schedule.warmup_steps,
        stable_steps=stable_steps,
        decay_steps=decay_steps,
        final_ratio=final_ratio,
    )(step)
