"""The pictures of a run, drawn from its metrics: for files (PNG, SVG) and for the report, where they follow its theme.

Loads no torch. No figure touches matplotlib's global state.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chogori.durable_files import disk_errors
from chogori.train.metrics import Evaluation, StepMetrics
from chogori.train.plot_style import (
    LIGHT,
    STAND_INS,
    Palette,
    draw_raw_and_smooth,
    layer_colour,
    limit_to_body,
    name_layers,
    new_axes,
    set_log_scale,
    set_visible_spines,
    smoothed,
)


@dataclass(frozen=True, kw_only=True)
class PlotData:
    """Everything the plots show."""

    steps: Sequence[StepMetrics]
    evaluations: Sequence[Evaluation]
    compressors: dict[str, float]
    """Bits per byte of general compressors on the same held-out files."""
    clip_threshold: float | None
    """τ of QK-Clip; None when it is off."""
    continued_after: Sequence[int]
    """Steps after which a later launch continued the run."""


_WIDTH, _HEIGHT = 6.4, 3.3

Painter = Callable[[Figure, PlotData, Palette], None]


# ---- the plots ------------------------------------------------------------------------------------------------------


def _loss(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = new_axes(figure, palette, "Training loss", "nats per token")
    steps, loss = _column(data, lambda m: m.loss)
    draw_raw_and_smooth(axes, steps, loss, palette)
    limit_to_body(axes, loss)


def _heldout(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = new_axes(figure, palette, "Held-out text", "bits per byte")
    parts = [entry for entry in data.evaluations if not entry.whole]
    whole = [entry for entry in data.evaluations if entry.whole]
    values = [entry.bits_per_byte for entry in data.evaluations]
    if parts:
        axes.plot(
            [e.step for e in parts], [e.bits_per_byte for e in parts], color=palette.first, marker="o", markersize=3
        )
    for entry in whole:
        axes.plot(entry.step, entry.bits_per_byte, color=palette.first, marker="D", markersize=6, linestyle="none")
        axes.annotate(
            f"{entry.bits_per_byte:.3f} on all of it",
            (entry.step, entry.bits_per_byte),
            textcoords="offset points",
            xytext=(-6, -14),
            ha="right",
            color=palette.first,
            fontsize=9,
        )
    last = max((entry.step for entry in data.evaluations), default=1)
    axes.set_xlim(0, last * 1.02)
    lowest = min(data.compressors.values(), default=0.0)
    for (name, bits), colour in zip(data.compressors.items(), (palette.second, palette.third) * 4, strict=False):
        axes.axhline(bits, color=colour, linestyle=(0, (5, 3)), linewidth=1.2)
        axes.annotate(
            f"{name} {bits:.3f}",
            (0, bits),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            # At the left, where the curve is still high; the lower line is named below it, so that names do not touch.
            xytext=(5, -12 if bits == lowest else 4),
            color=colour,
            fontsize=9,
        )
    everything = [*values, *data.compressors.values()]
    if everything:
        low, high = min(everything), max(everything)
        margin = 0.12 * max(high - low, 0.1)
        axes.set_ylim(low - margin, high + margin)


def _max_logits(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = new_axes(figure, palette, "Largest attention logit per layer", "logit")
    num_layers = max((len(m.max_logits) for m in data.steps), default=0)
    rows = [m for m in data.steps if len(m.max_logits) == num_layers]
    steps = [m.step for m in rows]
    largest = 1.0
    for layer in range(num_layers):
        values = np.array([m.max_logits[layer] for m in rows])
        largest = max(largest, float(values.max()))
        axes.plot(steps, values, color=layer_colour(layer, num_layers), linewidth=1.2, label=f"layer {layer}")
    threshold = data.clip_threshold
    if threshold is not None:
        axes.axhline(threshold, color=palette.second, linestyle=(0, (5, 3)), linewidth=1.2)
        axes.annotate(
            f"τ = {threshold:g}",
            (0, threshold),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(5, -12),
            color=palette.second,
            fontsize=9,
        )
        largest = max(largest, threshold)
    smallest = min((v for m in rows for v in m.max_logits if v > 0), default=largest)
    if smallest > 0 and largest / smallest > 30:
        set_log_scale(axes)
    else:
        axes.set_ylim(0, largest * 1.08)
    name_layers(figure, axes, num_layers, palette)


def _expert_balance(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = new_axes(figure, palette, "Busiest expert over the mean, per sparse layer", "tokens, max / mean")
    num_layers = max((len(m.load_violation) for m in data.steps), default=0)
    rows = [m for m in data.steps if len(m.load_violation) == num_layers]
    steps = np.array([m.step for m in rows])
    for layer in range(num_layers):
        values = 1 + np.array([m.load_violation[layer] for m in rows])
        colour = layer_colour(layer, num_layers)
        axes.plot(steps, smoothed(values), color=colour, linewidth=1.3, label=f"layer {layer}")
    axes.axhline(1, color=palette.muted, linestyle=(0, (5, 3)), linewidth=1)
    axes.set_ylim(bottom=0.9)
    name_layers(figure, axes, num_layers, palette)


def _expert_load(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = new_axes(
        figure, palette, "Load of every expert over time (1 is the mean of its layer)", "sparse layer, expert"
    )
    axes.grid(visible=False)
    rows = [m for m in data.steps if m.expert_load]
    if not rows:
        return
    load_SLE = np.array([m.expert_load for m in rows], dtype=float)
    relative = load_SLE / np.maximum(load_SLE.mean(axis=2, keepdims=True), 1)
    num_layers, num_experts = relative.shape[1:]
    image = axes.imshow(
        relative.reshape(len(rows), -1).T,
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps["RdBu_r"],
        norm=TwoSlopeNorm(1.0, 0.0, max(2.0, float(np.quantile(relative, 0.999)))),
        extent=(0.5, rows[-1].step + 0.5, num_layers * num_experts - 0.5, -0.5),
    )
    for layer in range(1, num_layers):
        axes.axhline(layer * num_experts - 0.5, color="#808080", linewidth=0.8)
    axes.set_yticks([layer * num_experts + (num_experts - 1) / 2 for layer in range(num_layers)])
    axes.set_yticklabels([str(layer) for layer in range(num_layers)])
    axes.tick_params(axis="y", length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.ax.tick_params(colors=palette.ink, labelsize=8.5, length=0)
    set_visible_spines(bar.ax, ())
    bar.outline.set_visible(False)


def _learning_rate(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = new_axes(figure, palette, "Learning rate", "")
    steps, rate = _column(data, lambda m: m.learning_rate)
    axes.plot(steps, rate, color=palette.first)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-"))
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, prune="lower"))


def _speed(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = new_axes(figure, palette, "Speed", "thousand tokens per second")
    steps, speed = _column(data, lambda m: m.timing.tokens_per_s / 1000)
    draw_raw_and_smooth(axes, steps, speed, palette)
    for step in data.continued_after:
        axes.axvline(step + 0.5, color=palette.second, linestyle=":", linewidth=1)
    axes.set_ylim(bottom=0, top=float(np.quantile(speed, 0.99)) * 1.15 if len(speed) else 1)
    shares = np.array([m.timing.peak_share for m in data.steps])
    if len(shares) and shares[-1] > 0:
        # One axis is the other times a constant (FLOPs per token over the peak), so both read the same curve.
        per_kilotoken = float(np.median(shares / np.maximum(speed, 1e-12)))

        def forward(kilotokens: Any) -> Any:
            return kilotokens * per_kilotoken * 100

        def backward(percent: Any) -> Any:
            return percent / per_kilotoken / 100

        right = axes.secondary_yaxis("right", functions=(forward, backward))
        right.set_ylabel("% of matrix peak", color=palette.ink, fontsize=9)
        right.tick_params(colors=palette.ink, labelsize=8.5, length=0)
        set_visible_spines(right, ())


def _grad_norm(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = new_axes(figure, palette, "Gradient norm before clipping", "")
    steps, norm = _column(data, lambda m: m.grad_norm)
    draw_raw_and_smooth(axes, steps, norm, palette)
    positive = norm[norm > 0]
    if len(positive) and positive.max() / positive.min() > 30:
        set_log_scale(axes)
    else:
        axes.set_ylim(bottom=0)


PLOTS: dict[str, Painter] = {
    "loss": _loss,
    "heldout": _heldout,
    "max_logits": _max_logits,
    "expert_balance": _expert_balance,
    "expert_load": _expert_load,
    "grad_norm": _grad_norm,
    "learning_rate": _learning_rate,
    "speed": _speed,
}
"""Plots by file name, in the order of the report."""


def _column(data: PlotData, value: Callable[[StepMetrics], float]) -> tuple[Any, Any]:
    return np.array([m.step for m in data.steps]), np.array([value(m) for m in data.steps], dtype=float)


# ---- rendering ------------------------------------------------------------------------------------------------------


def write_plots(data: PlotData, folder: Path) -> dict[str, str]:
    """Write every plot as `NAME.png` and `NAME.svg` on white. Returns by name what `themed_svg` gives.

    Raises StorageError when the folder cannot be written.
    """
    themed: dict[str, str] = {}
    with disk_errors(f"write the plots to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in PLOTS:
            (folder / f"{name}.png").write_bytes(_render(name, data, LIGHT, FigureCanvasAgg, background="white"))
            drawn = _draw_svg(name, data)
            (folder / f"{name}.svg").write_text(_coloured(drawn, vars(LIGHT)), encoding="utf-8")
            themed[name] = _for_page(drawn)
    return themed


def themed_svg(name: str, data: PlotData) -> str:
    """The plot as an SVG element for a page, coloured by the CSS variables --ink, --muted, --grid, --first … ."""
    return _for_page(_draw_svg(name, data))


def _draw_svg(name: str, data: PlotData) -> str:
    """In stand-in colours."""
    return _render(name, data, STAND_INS, FigureCanvasSVG, background="none").decode()


def _coloured(drawn: str, colours: Mapping[str, str]) -> str:
    for field, stand_in in vars(STAND_INS).items():
        drawn = drawn.replace(stand_in, colours[field])
    return drawn


def _for_page(drawn: str) -> str:
    svg = drawn[drawn.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = _coloured(svg, {field: f"var(--{field})" for field in vars(STAND_INS)})
    # The page decides the width.
    opening, rest = svg.split(">", 1)
    return re.sub(r' (?:height|width)="[^"]*"', "", opening) + ">" + rest


def _render(name: str, data: PlotData, palette: Palette, canvas: type[Any], *, background: str) -> bytes:
    settings: dict[Any, Any] = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "lines.linewidth": 1.4,
        "svg.fonttype": "none",
        "svg.hashsalt": f"chogori-{name}",  # element ids: the same for each run, other ones for each plot of a page
        "axes.unicode_minus": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=160, facecolor=background, layout="constrained")
        canvas(figure)
        PLOTS[name](figure, data, palette)
        buffer = io.BytesIO()
        kind = "svg" if canvas is FigureCanvasSVG else "png"
        # No date inside: the same run gives the same file.
        figure.savefig(buffer, format=kind, facecolor=background, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
