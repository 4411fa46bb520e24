"""A run opened again: its model, tokenizer and held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from chogori.chat.tokenizer import Tokenizer
from chogori.data import open_prepared
from chogori.errors import RunError
from chogori.model.transformer import K2Model
from chogori.train.checkpoint import CheckpointStore
from chogori.train.config import TrainConfig
from chogori.train.evaluation import evaluate
from chogori.train.machine import resolve_device, resolve_precision
from chogori.train.metrics import Evaluation
from chogori.train.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run has to show."""

    folder: RunFolder
    config: TrainConfig
    model: K2Model
    """In eval mode, on the config's device, float32 weights, computing in the config's precision."""
    tokenizer: Tokenizer
    source: Path
    """Folder the weights came from: the finished model, or the newest good checkpoint."""
    remarks: list[str]
    """Damaged checkpoints that were passed over."""


def open_run(path: Path) -> SavedRun:
    """Load the finished model of a run, or else its newest good checkpoint.

    Raises RunError when there is no run or it has no weights yet, CheckpointError when all checkpoints are damaged.
    """
    folder = RunFolder.open(path)
    config = folder.load_config()
    source, remarks = folder.model if folder.is_complete else None, []
    if source is None:
        source, remarks = CheckpointStore(folder.checkpoints, keep=config.keep_checkpoints).newest_good()
    if source is None:
        raise RunError(
            f"{path} has neither a finished model nor a checkpoint yet; train it for at least "
            f"{config.checkpoint_interval} steps (checkpoint_interval)"
        )
    device = resolve_device(config.device)
    model = K2Model.from_pretrained(source, dtype=torch.float32).to(device).eval()
    model.compute_dtype = resolve_precision(config, device)
    tokenizer = Tokenizer.load(folder.tokenizer)
    return SavedRun(folder=folder, config=config, model=model, tokenizer=tokenizer, source=source, remarks=remarks)


def evaluate_run(path: Path, *, max_bytes: int | None = None) -> Evaluation:
    """Bits per byte of a saved run on its held-out text (all of it unless `max_bytes`)."""
    run = open_run(path)
    data = open_prepared(run.folder.data_folder(run.config))
    return evaluate(
        run.model,
        data,
        batch_size=run.config.batch_size,
        sequence_length=run.config.sequence_length,
        max_bytes=max_bytes,
    )
