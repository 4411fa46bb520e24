"""Everything that decides a training run, as one frozen record. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chogori.data.config import DataConfig
from chogori.errors import ConfigError
from chogori.model.config import K2Config
from chogori.optim.config import MuonClipConfig


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves over a run. The defaults are K2's shape (report, §2.5): warm up, hold, decay."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    """"wsd" warms up, holds, then decays at the end; "cosine" decays from the end of the warm-up; "constant" holds."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly from 0 (K2: 500)."""
    decay_share: float = 0.35
    """For "wsd": share of all steps that the decay takes (K2: 5.5 T of 15.5 T tokens, 0.35)."""
    final_ratio: float = 0.1
    """Learning rate at the end over its peak (K2: 2e-5 over 2e-4)."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}; expected 0 or more")
        if not 0 <= self.decay_share <= 1:
            raise ConfigError(
                f"schedule.decay_share is {self.decay_share}; expected a share of all steps, 0 to 1, such as 0.35"
            )
        if not 0 <= self.final_ratio <= 1:
            raise ConfigError(
                f"schedule.final_ratio is {self.final_ratio}; expected the last learning rate over the peak, 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: the model, the optimizer, the text, and how long."""

    model: K2Config
    """Sizes of the model."""
    optim: MuonClipConfig = field(default_factory=MuonClipConfig)
    """Which optimizer, and its settings."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which text, and how it becomes tokens."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate moves."""
    out: Path = Path("runs/run")
    """Folder of the run. When it holds a run of this config, that run continues."""

    sequence_length: int = 512
    """Tokens per row."""
    batch_size: int = 8
    """Rows per micro-batch, that is per forward pass."""
    gradient_accumulation: int = 1
    """Micro-batches per optimizer step."""
    steps: int | None = None
    """Optimizer steps of the run. Give this or `tokens`."""
    tokens: int | None = None
    """Tokens to train on, rounded up to whole steps. Give this or `steps`."""
    time_limit_s: float | None = None
    """Training seconds, all launches together, after which the run shall be over. A run that cannot take all its steps
    in time starts the learning-rate decay early; where, is written down once and replayed on resume."""
    grad_clip_norm: float | None = 1.0
    """Gradients are scaled down to this norm, all parameters together; None leaves them."""
    router_bias_rate: float = 0.001
    """Step of the expert-balancing bias after each update (DeepSeek-V3 report, §4.2: 0.001); 0 switches it off."""

    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number type of the matrix products; weights and optimizer state stay float32. "auto" takes bfloat16 on a CUDA
    device and on processors with bfloat16 matrix instructions (AMX, AVX512_BF16)."""
    compile: Literal["auto", "never", "always"] = "auto"
    """torch.compile of the blocks. "auto" compiles where it was measured to pay, which so far is nowhere."""
    device: str = "auto"
    """"auto" (CUDA when there is one), "cpu", "cuda" or "cuda:1"."""
    threads: int | None = None
    """CPU threads; None leaves the choice to torch. Another number gives other last bits."""
    seed: int = 0
    """Of the initial weights; `data.seed` orders the documents."""

    eval_interval: int = 100
    """Steps between evaluations on held-out text; the end of the run is always evaluated."""
    eval_bytes: int = 200_000
    """Held-out bytes of an evaluation during training. The last one reads all held-out text."""
    checkpoint_interval: int = 100
    """Steps between checkpoints: what a power cut can cost."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    load_interval: int = 10
    """Steps between records of the whole expert-load matrix."""
    data_folder: Path | None = None
    """Where the prepared text lives; None keeps it inside the run. Runs of the same data may share one."""
    sample_prompts: tuple[str, ...] = ("def ", "import ", "class ", "The ")
    """Prompts that the finished model continues in the report."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run."""
    wandb: str | None = None
    """Also report to this Weights & Biases project."""

    def __post_init__(self) -> None:
        at_least_one = (
            "sequence_length batch_size gradient_accumulation eval_interval eval_bytes checkpoint_interval "
            "keep_checkpoints load_interval"
        )
        for name in at_least_one.split():
            value: int = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        if (self.steps is None) == (self.tokens is None):
            given = "neither" if self.steps is None else "both"
            raise ConfigError(f"{given} of steps and tokens is given; expected one of them, such as steps=1000")
        for name in ("steps", "tokens", "threads"):
            value_or_none: int | None = getattr(self, name)
            if value_or_none is not None and value_or_none < 1:
                raise ConfigError(f"{name} is {value_or_none}; expected at least 1")
        if self.time_limit_s is not None and not (self.time_limit_s > 0 and math.isfinite(self.time_limit_s)):
            raise ConfigError(f"time_limit_s is {self.time_limit_s}; expected seconds above 0, or None for no limit")
        if self.time_limit_s is not None and self.schedule.kind == "cosine":
            raise ConfigError(
                'time_limit_s is given with schedule.kind "cosine", whose every step depends on the last one; '
                'use schedule.kind "wsd", which can end early'
            )
        if self.grad_clip_norm is not None and self.grad_clip_norm <= 0:
            raise ConfigError(f"grad_clip_norm is {self.grad_clip_norm}; expected above 0, or None for no clipping")
        if not 0 <= self.router_bias_rate < 1:
            raise ConfigError(f"router_bias_rate is {self.router_bias_rate}; expected 0 to below 1, such as 0.001")
        if self.sequence_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"sequence_length is {self.sequence_length}, above model.max_position_embeddings = "
                f"{self.model.max_position_embeddings}; lower the first or raise the second"
            )
        if self.data.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"data.vocab_size is {self.data.vocab_size}, above model.vocab_size = {self.model.vocab_size}; "
                "give the model a row for every token"
            )
        if self.device not in ("auto", "cpu", "cuda") and not self.device.removeprefix("cuda:").isdecimal():
            raise ConfigError(f'device is "{self.device}"; expected "auto", "cpu", "cuda" or "cuda:N"')
        if self.schedule.warmup_steps >= self.total_steps and self.schedule.kind != "constant":
            raise ConfigError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}, but the run has {self.total_steps} steps; "
                "warm up over fewer"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, padding included."""
        return self.sequence_length * self.batch_size * self.gradient_accumulation

    @property
    def total_steps(self) -> int:
        """Optimizer steps when no time limit ends the run earlier."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return math.ceil(self.tokens / self.tokens_per_step)

    def replace(self, **changes: object) -> TrainConfig:
        """The same run with some fields changed; validated again."""
        known = {entry.name for entry in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                raise ConfigError(f"TrainConfig has no field {name!r}; its fields are {', '.join(sorted(known))}")
        return dataclasses.replace(self, **changes)


RESUMABLE_CHANGES = frozenset(
    "out time_limit_s checkpoint_interval keep_checkpoints data_folder tensorboard wandb sample_prompts".split()
)
"""Fields that may differ between the launches of one run: they do not reach the arithmetic of any step."""
