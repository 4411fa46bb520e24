"""What `make run` trains: every part of Kimi K2 at 10 M parameters, on two CPU cores, in minutes."""

from __future__ import annotations

from pathlib import Path

from chogori.data.config import DataConfig
from chogori.model.config import K2Config
from chogori.optim.config import MuonClipConfig
from chogori.train.config import ScheduleConfig, TrainConfig


def nano() -> TrainConfig:
    """Every part of K2, on the source and documentation of Python's standard library; minutes on two cores."""
    return TrainConfig(
        model=K2Config.preset("nano"),
        optim=MuonClipConfig(lr=2e-3),
        data=DataConfig(vocab_size=8192),
        schedule=ScheduleConfig(kind="wsd", warmup_steps=20, decay_share=0.35, final_ratio=0.1),
        out=Path("runs/nano"),
        sequence_length=512,
        batch_size=8,
        steps=500,
        # A slower machine takes fewer steps and decays earlier.
        time_limit_s=7.5 * 60,
        eval_interval=100,
        checkpoint_interval=50,
        # K2's 0.001 balances over tens of thousands of steps; a few hundred need more (LOG 2026-11-23).
        router_bias_rate=0.01,
    )
