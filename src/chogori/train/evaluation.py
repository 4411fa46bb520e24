"""Held-out bits per byte: the one number that compares models of any tokenizer with each other and with compressors.

Every target of the held-out text is predicted once; bits = sum of negative log-likelihoods / ln 2, over the raw bytes
that those targets encode.
"""

from __future__ import annotations

import math
import time

import torch

from chogori.data import PreparedData, heldout_batches
from chogori.errors import CorpusError
from chogori.model.transformer import K2Model
from chogori.train.metrics import Evaluation


@torch.no_grad()
def evaluate(
    model: K2Model,
    data: PreparedData,
    *,
    batch_size: int,
    sequence_length: int,
    max_bytes: int | None = None,
    step: int = 0,
    tokens: int = 0,
) -> Evaluation:
    """Bits per byte of `model` on the held-out text of `data`, or on its first `max_bytes` (whole batches).

    `step` and `tokens` are only noted in the result. The model's mode (train or eval) is put back.
    """
    start = time.perf_counter()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats, num_targets, num_bytes, whole = 0.0, 0, 0, True
    try:
        for batch in heldout_batches(data.heldout, batch_size=batch_size, sequence_length=sequence_length):
            if max_bytes is not None and num_bytes >= max_bytes:
                whole = False
                break
            if batch.num_targets == 0:
                continue
            loss = model.loss(
                torch.as_tensor(batch.tokens_BT).to(device),
                torch.as_tensor(batch.targets_BT).to(device),
                documents_BT=torch.as_tensor(batch.documents_BT).to(device),
                normaliser=1.0,
            )
            nats += float(loss)
            num_targets += batch.num_targets
            num_bytes += batch.num_bytes
    finally:
        model.train(was_training)
    if num_targets == 0 or num_bytes == 0:
        raise CorpusError("the held-out text is empty; raise data.heldout_share or give more text with data.paths")
    return Evaluation(
        step=step,
        tokens=tokens,
        bits_per_byte=nats / math.log(2) / num_bytes,
        nats_per_token=nats / num_targets,
        num_targets=num_targets,
        num_bytes=num_bytes,
        whole=whole,
        seconds=time.perf_counter() - start,
    )
