"""Where results and plots of the experiments go, and how the plots look: as those of a run's report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chogori.train.plot_style import LIGHT, new_axes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).resolve().parents[1]


def panels(count: int, titles: list[tuple[str, str, str]]) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side, each with a title, the unit of y and the name of x."""
    figure = Figure(figsize=(5.4 * count, 3.7), layout="constrained", facecolor="white")
    parts = figure.subfigures(1, count, squeeze=False)[0]
    axes: list[Axes] = []
    for part, (title, unit, across) in zip(parts, titles, strict=True):
        axes.append(new_axes(part, LIGHT, title, unit))
        axes[-1].set_xlabel(across, color=LIGHT.ink, fontsize=9)
    return figure, axes


def save(name: str, result: DataclassInstance, figure: Figure, *, summary: str) -> None:
    """experiments/results/NAME.json and docs/images/NAME.png; the documentation shows the plot and `summary`."""
    record = ROOT / "experiments" / "results" / f"{name}.json"
    plot = ROOT / "docs" / "images" / f"{name}.png"
    for path in (record, plot):
        path.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"summary": summary, **asdict(result)}, indent=2) + "\n", encoding="utf-8")
    figure.savefig(plot, dpi=120)
    print(summary)
    print(f"{record.relative_to(ROOT)} and {plot.relative_to(ROOT)} are written")


def legend(axes: Axes, **options: Any) -> None:
    """Without a frame, in the colour of the text."""
    axes.legend(frameon=False, fontsize=8.5, labelcolor=LIGHT.ink, **options)
