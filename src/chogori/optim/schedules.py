"""Learning-rate schedules as pure functions: step → multiplier of the base rate. Loads no torch.

A schedule is what `torch.optim.lr_scheduler.LambdaLR` takes: `LambdaLR(optimizer, WSD(...))`. Step 0 is the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from chogori.errors import ConfigError

DecayShape = Literal["cosine", "linear", "sqrt"]


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 0:
            raise ConfigError(f"schedule.{name} is {value}; expected 0 or more steps")


def _check_ratio(final_ratio: float) -> None:
    if not 0 <= final_ratio <= 1:
        raise ConfigError(f"schedule.final_ratio is {final_ratio:g}; expected 0 to 1, a share of the base rate")


def _warm_up(step: int, warmup_steps: int) -> float:
    # (step + 1): the first step already learns; the last warm-up step is followed by the full rate.
    return (step + 1) / (warmup_steps + 1)


@dataclass(frozen=True, kw_only=True)
class WSD:
    """Warm-up, stable, decay. Kimi K2: 500 steps of warm-up, constant 2e-4, then cosine to 2e-5 (final ratio 0.1)."""

    warmup_steps: int = 500
    """Steps of linear rise from near 0."""
    stable_steps: int
    """Steps at the full rate."""
    decay_steps: int
    """Steps of the fall; afterwards the rate stays at `final_ratio`."""
    final_ratio: float = 0.1
    """Multiplier at the end."""
    shape: DecayShape = "cosine"
    """Form of the fall: K2's "cosine", "linear", or "sqrt" for 1 − √x."""

    def __post_init__(self) -> None:
        _check_counts(warmup_steps=self.warmup_steps, stable_steps=self.stable_steps, decay_steps=self.decay_steps)
        _check_ratio(self.final_ratio)
        if self.shape not in get_args(DecayShape):
            raise ConfigError(f"schedule.shape is {self.shape!r}; expected one of {', '.join(get_args(DecayShape))}")

    @property
    def total_steps(self) -> int:
        """Steps until the fall has ended."""
        return self.warmup_steps + self.stable_steps + self.decay_steps

    def __call__(self, step: int) -> float:
        """The multiplier of the base learning rate at `step`."""
        if step < self.warmup_steps:
            return _warm_up(step, self.warmup_steps)
        into_decay = step - self.warmup_steps - self.stable_steps
        if into_decay < 0:
            return 1.0
        if into_decay >= self.decay_steps:
            return self.final_ratio
        done = into_decay / self.decay_steps
        if self.shape == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * done))
        elif self.shape == "linear":
            left = 1 - done
        else:
            left = 1 - math.sqrt(done)
        return self.final_ratio + (1 - self.final_ratio) * left


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Warm-up, then one half period of a cosine down to `final_ratio`."""

    warmup_steps: int = 0
    """Steps of linear rise from near 0."""
    total_steps: int
    """Steps of warm-up and fall together; afterwards the rate stays at `final_ratio`."""
    final_ratio: float = 0.1
    """Multiplier at the end."""

    def __post_init__(self) -> None:
        _check_counts(warmup_steps=self.warmup_steps, total_steps=self.total_steps)
        _check_ratio(self.final_ratio)
        if self.warmup_steps > self.total_steps:
            raise ConfigError(
                f"schedule.warmup_steps is {self.warmup_steps}, above schedule.total_steps = {self.total_steps}"
            )

    def __call__(self, step: int) -> float:
        """The multiplier of the base learning rate at `step`."""
        if step < self.warmup_steps:
            return _warm_up(step, self.warmup_steps)
        if step >= self.total_steps:
            return self.final_ratio
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * done))
