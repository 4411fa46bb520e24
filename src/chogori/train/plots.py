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
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from chogori.train.metrics import Evaluation, StepMetrics
from chogori.train.storage import disk_errors


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


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours by meaning."""

    ink: str
    """Text and axes."""
    muted: str
    """Raw values behind a smoothed line; secondary text."""
    grid: str
    first: str
    """The run itself."""
    second: str
    """Limits and comparisons."""
    third: str
    """A further comparison."""


LIGHT = Palette(ink="#24292f", muted="#656d76", grid="#d8dee4", first="#0b69c7", second="#c2410c", third="#15803d")
DARK = Palette(ink="#e6edf3", muted="#8b949e", grid="#343b44", first="#58a6ff", second="#ff9a57", third="#56d364")
# Stand-ins that the report replaces by CSS variables; each occurs nowhere else.
_STAND_INS = Palette(ink="#010203", muted="#010204", grid="#010205", first="#010206", second="#010207", third="#010208")

_LAYER_COLOURS = LinearSegmentedColormap.from_list("layers", ["#2a9fd6", "#7a5cd6", "#d6487e", "#e8833a"])
_WIDTH, _HEIGHT = 6.4, 3.3

Painter = Callable[[Figure, PlotData, Palette], None]


# ---- the plots ------------------------------------------------------------------------------------------------------


def _loss(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = _axes(figure, palette, "Training loss", "nats per token")
    steps, loss = _column(data, lambda m: m.loss)
    _raw_and_smooth(axes, steps, loss, palette)
    _limit_to_body(axes, loss)


def _heldout(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = _axes(figure, palette, "Held-out text", "bits per byte")
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
    axes = _axes(figure, palette, "Largest attention logit per layer", "logit")
    num_layers = max((len(m.max_logits) for m in data.steps), default=0)
    rows = [m for m in data.steps if len(m.max_logits) == num_layers]
    steps = [m.step for m in rows]
    largest = 1.0
    for layer in range(num_layers):
        values = np.array([m.max_logits[layer] for m in rows])
        largest = max(largest, float(values.max()))
        axes.plot(steps, values, color=_layer_colour(layer, num_layers), linewidth=1.2, label=f"layer {layer}")
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
        _log_scale(axes)
    else:
        axes.set_ylim(0, largest * 1.08)
    _name_layers(figure, axes, num_layers, palette)


def _expert_balance(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = _axes(figure, palette, "Busiest expert over the mean, per sparse layer", "tokens, max / mean")
    num_layers = max((len(m.load_violation) for m in data.steps), default=0)
    rows = [m for m in data.steps if len(m.load_violation) == num_layers]
    steps = np.array([m.step for m in rows])
    for layer in range(num_layers):
        values = 1 + np.array([m.load_violation[layer] for m in rows])
        colour = _layer_colour(layer, num_layers)
        axes.plot(steps, _smooth(values), color=colour, linewidth=1.3, label=f"layer {layer}")
    axes.axhline(1, color=palette.muted, linestyle=(0, (5, 3)), linewidth=1)
    axes.set_ylim(bottom=0.9)
    _name_layers(figure, axes, num_layers, palette)


def _expert_load(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = _axes(figure, palette, "Load of every expert over time (1 is the mean of its layer)", "sparse layer, expert")
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
    _set_visible_spines(bar.ax, ())
    bar.outline.set_visible(False)


def _learning_rate(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = _axes(figure, palette, "Learning rate", "")
    steps, rate = _column(data, lambda m: m.learning_rate)
    axes.plot(steps, rate, color=palette.first)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-"))
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, prune="lower"))


def _speed(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = _axes(figure, palette, "Speed", "thousand tokens per second")
    steps, speed = _column(data, lambda m: m.timing.tokens_per_s / 1000)
    _raw_and_smooth(axes, steps, speed, palette)
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
        _set_visible_spines(right, ())


def _grad_norm(figure: Figure, data: PlotData, palette: Palette) -> None:
    axes = _axes(figure, palette, "Gradient norm before clipping", "")
    steps, norm = _column(data, lambda m: m.grad_norm)
    _raw_and_smooth(axes, steps, norm, palette)
    positive = norm[norm > 0]
    if len(positive) and positive.max() / positive.min() > 30:
        _log_scale(axes)
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
    return _render(name, data, _STAND_INS, FigureCanvasSVG, background="none").decode()


def _coloured(drawn: str, colours: Mapping[str, str]) -> str:
    for field, stand_in in vars(_STAND_INS).items():
        drawn = drawn.replace(stand_in, colours[field])
    return drawn


def _for_page(drawn: str) -> str:
    svg = drawn[drawn.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = _coloured(svg, {field: f"var(--{field})" for field in vars(_STAND_INS)})
    # The page decides the width.
    opening, rest = svg.split(">", 1)
    return re.sub(r' (?:height|width)="[^"]*"', "", opening) + ">" + rest


def theme_css() -> str:
    """The CSS variables of the plots, light and dark."""

    def variables(palette: Palette) -> str:
        return " ".join(f"--{field}: {colour};" for field, colour in vars(palette).items())

    return f":root {{ {variables(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"


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


# ---- shared strokes -------------------------------------------------------------------------------------------------


def _axes(figure: Figure, palette: Palette, title: str, unit: str) -> Axes:
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", color=palette.ink, fontsize=11, fontweight="bold", pad=10)
    axes.set_xlabel("step", color=palette.ink, fontsize=9)
    axes.set_ylabel(unit, color=palette.ink, fontsize=9)
    axes.tick_params(colors=palette.ink, labelsize=8.5, length=0, which="both")
    axes.grid(visible=True, axis="y", color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.01)
    _set_visible_spines(axes, ("bottom",))
    axes.spines["bottom"].set_color(palette.muted)
    return axes


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _set_visible_spines(axes: Any, sides: Sequence[str]) -> None:
    for side in axes.spines:
        axes.spines[side].set_visible(side in sides)


def _column(data: PlotData, value: Callable[[StepMetrics], float]) -> tuple[Any, Any]:
    return np.array([m.step for m in data.steps]), np.array([value(m) for m in data.steps], dtype=float)


def _raw_and_smooth(axes: Axes, steps: Any, values: Any, palette: Palette) -> None:
    axes.plot(steps, values, color=palette.muted, linewidth=0.7, alpha=0.55)
    axes.plot(steps, _smooth(values), color=palette.first, linewidth=1.6)


def _smooth(values: Any) -> Any:
    """Centred moving average over about a fiftieth of the run, shorter at its ends."""
    half = len(values) // 100
    if half == 0:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, len(values) - 1 - index), half)
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def _limit_to_body(axes: Axes, values: Any) -> None:
    """Let the first steps, which fall from the top, leave the picture: the body of the curve is what one reads."""
    if len(values) < 20:
        return
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    margin = 0.06 * max(high - low, 1e-9)
    axes.set_ylim(low - margin, high + 2 * margin)


def _layer_colour(layer: int, num_layers: int) -> Any:
    return _LAYER_COLOURS(layer / max(num_layers - 1, 1))


def _name_layers(figure: Figure, axes: Axes, num_layers: int, palette: Palette) -> None:
    """A legend for a few layers, a colour bar for many."""
    if 1 < num_layers <= 6:
        axes.set_title(axes.get_title("left"), loc="left", color=palette.ink, fontsize=11, fontweight="bold", pad=24)
        legend = axes.legend(
            frameon=False,
            fontsize=8.5,
            ncols=num_layers,
            loc="lower left",
            bbox_to_anchor=(0, 1.005),
            borderpad=0,
            borderaxespad=0.2,
            handlelength=1.2,
            columnspacing=1.2,
        )
        for text in legend.get_texts():
            text.set_color(palette.ink)
    elif num_layers > 6:
        mappable = ScalarMappable(cmap=_LAYER_COLOURS, norm=Normalize(0, num_layers - 1))
        bar = figure.colorbar(mappable, ax=axes, fraction=0.03, pad=0.02)
        bar.set_label("layer", color=palette.ink, fontsize=9)
        bar.ax.tick_params(colors=palette.ink, labelsize=8.5, length=0)
        bar.outline.set_visible(False)
