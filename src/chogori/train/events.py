"""What a training run tells its faces: typed events, in the order they happen. Loads no torch.

The loop knows no face. Progress display, TensorBoard and W&B are listeners: `Callable[[Event], None]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chogori.train.config import TrainConfig
from chogori.train.metrics import Evaluation, StepMetrics


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """Something slow before the first step goes on."""

    stage: str
    """What is being done, as a phrase: "training the tokenizer"."""
    fraction: float
    """Share done, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """The first step is about to be taken, or the first one after a continuation."""

    folder: Path
    config: TrainConfig
    start_step: int
    """Steps already taken; above 0 when the run continues."""
    total_steps: int
    tokens_per_step: int
    num_parameters: int
    num_active_parameters: int
    compute: str
    """Number type and device, in words."""
    peak_flop_per_s: float
    """Measured matrix peak; 0 when not measured."""
    optimizer: str
    """What goes to Muon and what to AdamW."""
    compressors: dict[str, float]
    """Bits per byte of general compressors on the same held-out files: {"xz": 1.9, …}."""


@dataclass(frozen=True, kw_only=True)
class StepFinished:
    metrics: StepMetrics


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    step: int
    folder: Path
    seconds: float
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class DecayDecided:
    """A run with a time limit has fixed its last step, and with it the start of the learning-rate decay."""

    at_step: int
    last_step: int


@dataclass(frozen=True, kw_only=True)
class Warned:
    """Something the user should know and that does not stop the run."""

    message: str


@dataclass(frozen=True, kw_only=True)
class SampleDrawn:
    """Text from the finished model."""

    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """No step follows in this process."""

    folder: Path
    step: int
    reason: Literal["completed", "interrupted"]
    hint: str
    """What to type next."""


Event = (
    Preparing
    | RunStarted
    | StepFinished
    | Evaluated
    | CheckpointSaved
    | DecayDecided
    | Warned
    | SampleDrawn
    | RunFinished
)
Listener = Callable[[Event], None]
