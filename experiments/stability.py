"""A model pushed into logit explosion by Muon with a high learning rate, and the same seed with MuonClip.

Both runs differ in one field, `optim.optimizer`. Expected: without QK-Clip the largest attention logit passes 1,000 or
the loss diverges; with it the logits stay at the threshold and the loss falls without a spike.

    python experiments/stability.py [--steps 300] [--lr 0.04]
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from drawing import ROOT, legend, panels, save

from chogori.errors import NonFiniteError
from chogori.optim.config import MuonClipConfig, OptimizerKind
from chogori.recipes import nano
from chogori.train import train
from chogori.train.config import ScheduleConfig, TrainConfig
from chogori.train.metrics import read_metrics
from chogori.train.plot_style import LIGHT, set_log_scale
from chogori.train.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run, step by step."""

    loss: list[float]
    max_logit: list[float]
    clipped_heads: list[int]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    steps: int
    largest_logit: float
    median_logit_of_last_tenth: float
    first_loss: float
    mean_loss_of_last_tenth: float
    largest_rise_of_smoothed_loss: float
    """How far the moving average of 11 losses ever stood above its lowest value so far: a spike's height."""
    steps_with_clipping: int


@dataclass(frozen=True, kw_only=True)
class Result:
    lr: float
    threshold: float
    muon: Outcome
    muonclip: Outcome


def config(optimizer: OptimizerKind, *, lr: float, steps: int, runs: Path) -> TrainConfig:
    return nano().replace(
        optim=MuonClipConfig(optimizer=optimizer, lr=lr),
        schedule=ScheduleConfig(kind="constant", warmup_steps=40),
        steps=steps,
        time_limit_s=None,
        sequence_length=256,
        eval_interval=steps,
        checkpoint_interval=max(1, steps // 4),
        out=runs / f"stability-{optimizer}-lr{lr:g}-{steps}",
        data_folder=runs / "data",
    )


def run(config: TrainConfig) -> Curve:
    """Train, or go on; a run that diverges ends where it did."""
    try:
        with Progress() as progress:
            train(config, listeners=[progress])
    except NonFiniteError as error:
        print(f"{config.out.name} ended early: {error}")
    records: list[Any] = [record for record in read_metrics(config.out / "metrics.jsonl") if record["kind"] == "step"]
    return Curve(
        loss=[record["loss"] for record in records],
        max_logit=[max(record["max_logits"]) for record in records],
        clipped_heads=[sum(record["clipped_heads"]) for record in records],
    )


def outcome(curve: Curve) -> Outcome:
    tail = max(1, len(curve.loss) // 10)
    smooth = smoothed(curve.loss, width=11)
    return Outcome(
        steps=len(curve.loss),
        largest_logit=round(max(curve.max_logit), 1),
        median_logit_of_last_tenth=round(statistics.median(curve.max_logit[-tail:]), 1),
        first_loss=round(curve.loss[0], 3),
        mean_loss_of_last_tenth=round(statistics.mean(curve.loss[-tail:]), 3),
        largest_rise_of_smoothed_loss=round(
            max(loss - low for loss, low in zip(smooth, accumulate(smooth, min), strict=True)), 3
        ),
        steps_with_clipping=sum(count > 0 for count in curve.clipped_heads),
    )


def smoothed(values: list[float], *, width: int) -> list[float]:
    """Centred moving average, shorter at the ends."""
    reach = width // 2
    windows = (values[max(0, at - reach) : at + reach + 1] for at in range(len(values)))
    return [statistics.mean(window) for window in windows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=0.04)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    arguments = parser.parse_args()
    muon, muonclip = (
        run(config(optimizer, lr=arguments.lr, steps=arguments.steps, runs=arguments.runs))
        for optimizer in ("muon", "muonclip")
    )
    threshold = nano().optim.qk_clip.threshold
    result = Result(lr=arguments.lr, threshold=threshold, muon=outcome(muon), muonclip=outcome(muonclip))
    figure, (logits, losses) = panels(
        2, [("Largest attention logit", "", "step"), ("Training loss", "nats per token", "step")]
    )
    for curve, name, colour in ((muon, "Muon", LIGHT.second), (muonclip, "MuonClip", LIGHT.first)):
        steps = range(1, len(curve.loss) + 1)
        logits.plot(steps, curve.max_logit, color=colour, label=name, linewidth=1.6)
        losses.plot(steps, curve.loss, color=colour, linewidth=0.6, alpha=0.35)
        losses.plot(steps, smoothed(curve.loss, width=11), color=colour, label=name, linewidth=1.6)
    logits.axhline(threshold, color=LIGHT.muted, linestyle="--", linewidth=1, label=f"τ = {threshold:g}")
    set_log_scale(logits)
    legend(logits)
    legend(losses)
    summary = (
        f"{result.muon.steps} steps of the nano model at a learning rate of {result.lr:g}, one seed. Muon alone: the "
        f"largest attention logit reached {result.muon.largest_logit:,.0f}, the loss ended at "
        f"{result.muon.mean_loss_of_last_tenth:.2f} nats per token. MuonClip, the same but for QK-Clip: logits stayed "
        f"at {result.muonclip.median_logit_of_last_tenth:.0f} (median of the last tenth, before the clip of each step; "
        f"τ is {result.threshold:g}), the loss ended at {result.muonclip.mean_loss_of_last_tenth:.2f}."
    )
    save("stability", result, figure, summary=summary)


if __name__ == "__main__":
    main()
