"""How every plot looks: colours by meaning, axes, lines, names of layers. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator


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
STAND_INS = Palette(ink="#010203", muted="#010204", grid="#010205", first="#010206", second="#010207", third="#010208")

_LAYER_COLOURS = LinearSegmentedColormap.from_list("layers", ["#2a9fd6", "#7a5cd6", "#d6487e", "#e8833a"])


def theme_css() -> str:
    """The CSS variables of the plots, light and dark."""

    def variables(palette: Palette) -> str:
        return " ".join(f"--{field}: {colour};" for field, colour in vars(palette).items())

    return f":root {{ {variables(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"


def new_axes(figure: Figure, palette: Palette, title: str, unit: str) -> Axes:
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
    set_visible_spines(axes, ("bottom",))
    axes.spines["bottom"].set_color(palette.muted)
    return axes


def set_log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def set_visible_spines(axes: Any, sides: Sequence[str]) -> None:
    for side in axes.spines:
        axes.spines[side].set_visible(side in sides)


def draw_raw_and_smooth(axes: Axes, steps: Any, values: Any, palette: Palette) -> None:
    axes.plot(steps, values, color=palette.muted, linewidth=0.7, alpha=0.55)
    axes.plot(steps, smoothed(values), color=palette.first, linewidth=1.6)


def smoothed(values: Any) -> Any:
    """Centred moving average over about a fiftieth of the run, shorter at its ends."""
    half = len(values) // 100
    if half == 0:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, len(values) - 1 - index), half)
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def limit_to_body(axes: Axes, values: Any) -> None:
    """Let the first steps, which fall from the top, leave the picture: the body of the curve is what one reads."""
    if len(values) < 20:
        return
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    margin = 0.06 * max(high - low, 1e-9)
    axes.set_ylim(low - margin, high + 2 * margin)


def layer_colour(layer: int, num_layers: int) -> Any:
    return _LAYER_COLOURS(layer / max(num_layers - 1, 1))


def name_layers(figure: Figure, axes: Axes, num_layers: int, palette: Palette) -> None:
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
