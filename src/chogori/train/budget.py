"""When a run ends, and with it how its learning rate falls. Loads no torch.

The number of steps is known from the config, unless a time limit stops the run earlier. Then the end is decided once,
at the step where the remaining time is just enough for the decay, written down before it takes effect, and read back
on resume. So a continued run repeats the decision instead of timing itself anew, and stays bit-exact.

While the rate holds ("stable"), it does not depend on the end; that is why only such schedules take a time limit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import cast

from chogori.durable_files import write_text_atomically
from chogori.errors import RunError
from chogori.train.config import TrainConfig

# Decide a little early: the last steps, evaluation and checkpoint take their time too.
_RESERVE = 0.03


class Budget:
    """The last step of a run. `file` keeps the decision of a time-limited run."""

    def __init__(self, config: TrainConfig, file: Path) -> None:
        self._config = config
        self._file = file
        self.last_step = config.total_steps
        self._decided = config.time_limit_s is None
        if file.exists():
            try:
                self.last_step = int(cast("dict[str, int]", json.loads(file.read_text(encoding="utf-8")))["last_step"])
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{file} is damaged ({error}); delete it to let the run decide its end again") from error
            self._decided = True

    @property
    def num_decay_steps(self) -> int:
        """Steps of the decay, the last ones of the run."""
        schedule = self._config.schedule
        if schedule.kind != "wsd":
            return 0
        # Rounded down: then p (s + d) never exceeds the d of `consider`, and no decay reaches into steps taken before.
        return min(math.floor(schedule.decay_share * self.last_step), self.last_step - schedule.warmup_steps)

    def consider(self, step: int, elapsed_s: float) -> bool:
        """After `step` steps in `elapsed_s` seconds: fix the last step if the time left is needed for the decay.

        Returns whether the decision was taken now.
        """
        limit_s, schedule = self._config.time_limit_s, self._config.schedule
        if self._decided or limit_s is None or step < max(1, schedule.warmup_steps):
            return False
        decay = self._decay_steps_after(step)
        last_step = step + decay
        if last_step >= self.last_step:  # the planned end is near enough; it stays
            self._decided = True
            return False
        seconds_per_step = elapsed_s / step
        if elapsed_s + (decay + 1) * seconds_per_step < limit_s * (1 - _RESERVE):
            return False
        write_text_atomically(self._file, json.dumps({"at_step": step, "last_step": last_step}) + "\n")
        self.last_step, self._decided = last_step, True
        return True

    def _decay_steps_after(self, step: int) -> int:
        # d steps after s others are the share p of all: d = p (s + d).
        schedule = self._config.schedule
        if schedule.kind != "wsd":
            return 0
        share = min(schedule.decay_share, 0.999)
        return math.floor(step * share / (1 - share))
