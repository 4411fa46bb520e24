"""Tokens that MuonClip needs to reach AdamW's final loss on the nano recipe.

1. Both optimizers try the same learning rates on 100 steps; each keeps its best.
2. AdamW trains `--steps` steps of the recipe, three seeds. Its mean held-out loss is the goal.
3. MuonClip trains 2/5, 3/5 and 11/15 of the steps, three seeds, each with its own decay (a loss before the decay cannot
   be compared with one after it); where it crosses the goal is found by interpolation in log steps.

    python experiments/sample_efficiency.py [--steps 300]

The recipe itself has 500 steps; 300 take half an hour on two quiet cores.

Two runs of one thread each go on at a time. A seed is that of the initial weights; the order of documents stays.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from drawing import ROOT, legend, panels, save
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chogori.train.plot_style import LIGHT

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SEEDS = (0, 1, 2)
TUNING_STEPS = 100
TOKENS_PER_STEP = 8 * 512


@dataclass(frozen=True)
class Run:
    optimizer: str
    lr: float
    steps: int
    seed: int

    def folder(self, runs: Path) -> Path:
        return runs / f"{self.optimizer}-lr{self.lr:g}-steps{self.steps}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Result:
    learning_rates: dict[str, float]
    tuning_steps: int
    tuning_bits_per_byte: dict[str, float]
    adamw_steps: int
    adamw_bits_per_byte: list[float]
    muonclip_bits_per_byte: dict[int, list[float]]
    """Steps of the shortened recipe to the held-out loss of each seed."""
    muonclip_steps_needed: list[int]
    share_of_adamw_tokens: list[float]


def bits_per_byte(run: Run, runs: Path) -> float:
    """Train the run (or read it, when it is done) and return its loss on all held-out text."""
    folder = run.folder(runs)
    if not (folder / "model").exists():
        command = [sys.executable, "-m", "chogori", "train", "nano", "--out", str(folder)]
        command += ["--optim.optimizer", run.optimizer, "--optim.lr", str(run.lr), "--steps", str(run.steps)]
        command += ["--seed", str(run.seed), "--threads", "1", "--time-limit-s", "None"]
        command += ["--eval-interval", str(run.steps), "--checkpoint-interval", "100"]
        command += ["--data-folder", str(runs / "data")]
        with (runs / f"{folder.name}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    value = float(json.loads((folder / "evaluation.json").read_text())["bits_per_byte"])
    print(f"{folder.name}: {value:.4f} bits per byte", flush=True)
    return value


def evaluate(wanted: Sequence[Run], runs: Path) -> dict[Run, float]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(wanted, pool.map(lambda run: bits_per_byte(run, runs), wanted), strict=True))


def crossing(steps: Sequence[int], losses: Sequence[float], goal: float) -> float:
    """Steps at which the loss, a straight line in log steps between and beyond the measured ones, meets the goal."""
    points = sorted(zip(steps, losses, strict=True))
    pairs = list(pairwise(points))
    beyond = pairs[0] if goal > points[0][1] else pairs[-1]
    (s0, l0), (s1, l1) = next((pair for pair in pairs if pair[0][1] >= goal >= pair[1][1]), beyond)
    share = (l0 - goal) / (l0 - l1)
    return math.exp(math.log(s0) + share * (math.log(s1) - math.log(s0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="that AdamW takes")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    arguments = parser.parse_args()
    steps, runs = arguments.steps, arguments.runs
    runs.mkdir(parents=True, exist_ok=True)
    short = [2 * steps // 5, 3 * steps // 5, 11 * steps // 15]

    prepare = [sys.executable, "-m", "chogori", "train", "nano", "--steps", "21", "--threads", "1"]
    if not (runs / "data" / "manifest.json").exists():  # once, before two runs would do it at the same time
        subprocess.run([*prepare, "--data-folder", str(runs / "data"), "--out", str(runs / "prepare")], check=True)
    tuning = evaluate([Run(name, lr, TUNING_STEPS, 0) for lr in RATES for name in ("adamw", "muonclip")], runs)
    best = {
        name: min((run for run in tuning if run.optimizer == name), key=lambda run: tuning[run]).lr
        for name in ("adamw", "muonclip")
    }
    print(f"best learning rates on {TUNING_STEPS} steps: {best}", flush=True)
    adamw = evaluate([Run("adamw", best["adamw"], steps, seed) for seed in SEEDS], runs)
    muonclip = evaluate([Run("muonclip", best["muonclip"], count, seed) for count in short for seed in SEEDS], runs)

    goal = statistics.mean(adamw.values())
    needed = [
        crossing(short, [muonclip[Run("muonclip", best["muonclip"], count, seed)] for count in short], goal)
        for seed in SEEDS
    ]
    result = Result(
        learning_rates=best,
        tuning_steps=TUNING_STEPS,
        tuning_bits_per_byte={f"{run.optimizer} {run.lr:g}": round(value, 4) for run, value in tuning.items()},
        adamw_steps=steps,
        adamw_bits_per_byte=[round(value, 4) for value in adamw.values()],
        muonclip_bits_per_byte={
            count: [round(value, 4) for run, value in muonclip.items() if run.steps == count] for count in short
        },
        muonclip_steps_needed=[round(value) for value in needed],
        share_of_adamw_tokens=[round(value / steps, 3) for value in needed],
    )
    between = all(short[0] <= value <= short[-1] for value in needed)
    how = f"{'interpolated between' if between else 'extrapolated from'} {', '.join(map(str, short))} steps"
    share, shares = statistics.mean(result.share_of_adamw_tokens), result.share_of_adamw_tokens
    summary = (
        f"AdamW (learning rate {best['adamw']:g}) reaches {goal:.3f} bits per held-out byte in {steps} steps of the "
        f"nano recipe, the mean of three seeds. MuonClip (learning rate {best['muonclip']:g}) reaches the same with "
        f"{share:.0%} of the tokens ({min(shares):.0%} to {max(shares):.0%}, {how}). Learning rates are the best of "
        f"{', '.join(f'{lr:g}' for lr in RATES)} for each, by {TUNING_STEPS} steps."
    )
    save("sample_efficiency", result, draw(result), summary=summary)


def draw(result: Result) -> Figure:
    figure, (axes,) = panels(1, [("Held-out loss, three seeds", "bits per byte", "training tokens, millions")])
    for seed in SEEDS:
        steps = list(result.muonclip_bits_per_byte)
        values = [result.muonclip_bits_per_byte[count][seed] for count in steps]
        label = "MuonClip, fewer steps" if seed == SEEDS[0] else None
        axes.plot([millions(count) for count in steps], values, "o-", color=LIGHT.first, alpha=0.75, label=label)
    ends = [millions(result.adamw_steps)] * len(SEEDS)
    axes.plot(ends, result.adamw_bits_per_byte, "s", color=LIGHT.second, label="AdamW")
    axes.axhline(statistics.mean(result.adamw_bits_per_byte), color=LIGHT.muted, linestyle="--", linewidth=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    legend(axes)
    return figure


def millions(steps: int) -> float:
    return steps * TOKENS_PER_STEP / 1e6


if __name__ == "__main__":
    main()
