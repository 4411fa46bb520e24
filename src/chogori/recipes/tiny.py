"""The smallest run that goes through every stage. For tests and for trying a change."""

from __future__ import annotations

from pathlib import Path

from chogori.data.config import DataConfig
from chogori.model.config import K2Config
from chogori.optim.config import MuonClipConfig
from chogori.train.config import ScheduleConfig, TrainConfig


def tiny() -> TrainConfig:
    """A few seconds through every stage: to see that all works, not to learn anything."""
    return TrainConfig(
        model=K2Config.preset("tiny"),
        optim=MuonClipConfig(lr=5e-3),
        data=DataConfig(vocab_size=320, max_bytes=1_000_000),
        schedule=ScheduleConfig(warmup_steps=5),
        out=Path("runs/tiny"),
        sequence_length=128,
        batch_size=8,
        steps=30,
        # Compiling takes longer than the whole run.
        compile="never",
        eval_interval=10,
        eval_bytes=20_000,
        checkpoint_interval=10,
    )
