"""A model pushed into logit explosion by Muon with a high learning rate, and the same seed with MuonClip.

Both runs differ in one field, `optim.optimizer`. Expected: without QK-Clip the largest attention logit passes 1,000 or
the loss diverges; with it every logit stays at the threshold and the loss falls without a spike.

    python experiments/stability.py [--steps 160] [--lr 0.05]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

from chogori.errors import NonFiniteError
from chogori.model import K2Config
from chogori.recipes import nano
from chogori.train import train
from chogori.train.config import ScheduleConfig, TrainConfig
from chogori.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "experiments" / "results" / "stability.json"
PLOT = ROOT / "docs" / "images" / "stability.png"
LABELS = {"muon": "Muon", "muonclip": "MuonClip"}


def config(optimizer: str, *, lr: float, steps: int, runs: Path) -> TrainConfig:
    recipe = nano()
    return recipe.replace(
        model=K2Config.preset("nano"),
        optim=recipe.optim.__class__(optimizer=optimizer, lr=lr),
        schedule=ScheduleConfig(kind="constant", warmup_steps=10),
        steps=steps,
        time_limit_s=None,
        sequence_length=256,
        eval_interval=steps,
        checkpoint_interval=steps,
        out=runs / f"stability-{optimizer}-lr{lr:g}-{steps}",
        data_folder=runs / "data",
    )


def run(config: TrainConfig) -> dict[str, list[float]]:
    """Losses and largest logits of every step; those before the end when the run diverges."""
    try:
        train(config)
    except NonFiniteError as error:
        print(f"{config.out.name} ended early: {error}")
    records = [record for record in read_metrics(config.out / "metrics.jsonl") if record["kind"] == "step"]
    return {
        "loss": [float(record["loss"]) for record in records],
        "max_logit": [max(record["max_logits"]) for record in records],
    }


def draw(curves: dict[str, dict[str, list[float]]], threshold: float, path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (logit_axes, loss_axes) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, colour in (("muon", "#c2410c"), ("muonclip", "#1d4ed8")):
        steps = range(1, len(curves[name]["loss"]) + 1)
        logit_axes.plot(steps, curves[name]["max_logit"], color=colour, label=LABELS[name])
        loss_axes.plot(steps, curves[name]["loss"], color=colour, label=LABELS[name], linewidth=1)
    logit_axes.axhline(threshold, color="#64748b", linestyle="--", linewidth=1, label=f"τ = {threshold:g}")
    logit_axes.set(yscale="log", xlabel="step", title="Largest attention logit")
    loss_axes.set(xlabel="step", title="Training loss, nats per token")
    for axes in (logit_axes, loss_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    arguments = parser.parse_args()
    curves: dict[str, dict[str, list[float]]] = {}
    for optimizer in LABELS:
        print(f"training {LABELS[optimizer]} for {arguments.steps} steps at learning rate {arguments.lr:g}", flush=True)
        settings = config(optimizer, lr=arguments.lr, steps=arguments.steps, runs=arguments.runs)
        curves[optimizer] = run(settings)
    threshold = nano().optim.qk_clip.threshold
    draw(curves, threshold, PLOT)
    summary = {
        LABELS[name]: {
            "steps": len(curve["loss"]),
            "largest_logit": round(max(curve["max_logit"]), 1),
            "first_loss": round(curve["loss"][0], 3),
            "last_loss": round(sum(curve["loss"][-10:]) / len(curve["loss"][-10:]), 3),
            "largest_rise_of_loss": round(largest_rise(curve["loss"]), 3),
        }
        for name, curve in curves.items()
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"lr": arguments.lr, "threshold": threshold, "runs": summary}, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    print(f"plot: {PLOT}")


def largest_rise(losses: list[float]) -> float:
    """How far the loss ever stood above its lowest value so far: a spike's height (noise between batches included)."""
    lowest, rise = losses[0], 0.0
    for loss in losses:
        lowest = min(lowest, loss)
        rise = max(rise, loss - lowest)
    return rise


if __name__ == "__main__":
    main()
