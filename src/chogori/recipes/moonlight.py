"""Moonlight-16B-A3B's pretraining after "Muon is Scalable for LLM Training" (arXiv 2502.16982)."""

from __future__ import annotations

from pathlib import Path

from chogori.data.config import DataConfig
from chogori.model.config import K2Config
from chogori.optim.config import MuonClipConfig
from chogori.train.config import ScheduleConfig, TrainConfig


def moonlight_16b_a3b() -> TrainConfig:
    """Moonlight: 5.2 T tokens in batches of 2,048 rows of 8,192 tokens.

    Departures: the batch does not double after 200 B tokens, the cool-down stage of 0.5 T tokens is left out, and
    QK-Clip, which Moonlight did not have, watches the attention logits.
    """
    return TrainConfig(
        model=K2Config.preset("moonlight-16b-a3b"),
        optim=MuonClipConfig(lr=4.2e-4, weight_decay=0.1),
        data=DataConfig(paths=(Path("corpus"),), stdlib=False, tokenizer=Path("tiktoken.model"), vocab_size=163_840),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_ratio=0.1),
        out=Path("runs/moonlight-16b-a3b"),
        sequence_length=8192,
        batch_size=1,
        gradient_accumulation=2048,
        tokens=5_200_000_000_000,
        eval_interval=1000,
        checkpoint_interval=1000,
    )
