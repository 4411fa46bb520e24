"""Kimi K2's pretraining as its technical report gives it (arXiv 2507.20534, §2.5), at 4,096 tokens of context."""

from __future__ import annotations

from pathlib import Path

from chogori.data.config import DataConfig
from chogori.model.config import K2Config
from chogori.optim.config import MuonClipConfig
from chogori.train.config import ScheduleConfig, TrainConfig

# 67 M tokens: 16,384 rows of 4,096.
ROWS_PER_STEP = 16_384


def kimi_k2() -> TrainConfig:
    """Kimi K2: 15.5 T tokens in batches of 67 M.

    The later stages (400 B tokens at 4k, 60 B at 32k, YaRN to 128k) are not part of it. How the rows of a step are
    divided into micro-batches is ours.
    """
    return TrainConfig(
        model=K2Config.preset("kimi-k2"),
        optim=MuonClipConfig(lr=2e-4, weight_decay=0.1),
        data=DataConfig(paths=(Path("corpus"),), stdlib=False, tokenizer=Path("tiktoken.model"), vocab_size=163_840),
        # 500 steps of warm-up, 10 T tokens at 2e-4, then a cosine to 2e-5 over 5.5 T.
        schedule=ScheduleConfig(kind="wsd", warmup_steps=500, decay_share=5.5 / 15.5, final_ratio=0.1),
        out=Path("runs/kimi-k2"),
        sequence_length=4096,
        batch_size=1,
        gradient_accumulation=ROWS_PER_STEP,
        tokens=15_500_000_000_000,
        eval_interval=1000,
        checkpoint_interval=1000,
    )
