"""Plots are files that open, and SVG elements whose colours follow the page."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib import image

from chogori.errors import StorageError
from chogori.train.metrics import Evaluation, StepMetrics, StepTiming
from chogori.train.plot_style import DARK, LIGHT, theme_css
from chogori.train.plots import PLOTS, PlotData, themed_svg, write_plots


def plot_data(num_steps: int, *, num_layers: int = 3, sparse: bool = True, attention: bool = True) -> PlotData:
    """A run with every curve, or without experts, or without observed logits."""
    loads = tuple(tuple(range(1, 5)) for _ in range(num_layers)) if sparse else ()
    steps = [
        StepMetrics(
            step=number,
            tokens=64 * number,
            loss=2 + math.exp(-number / 5),
            learning_rate=1e-3,
            grad_norm=1 / number,
            max_logits=tuple(float(number + layer) for layer in range(num_layers)) if attention else (),
            max_logits_exact=(False,) * num_layers if attention else (),
            clipped_heads=(0,) * num_layers if attention else (),
            load_violation=tuple(0.5 for _ in loads),
            hottest_expert=(0, 3) if sparse else None,
            coldest_expert=(0, 0) if sparse else None,
            expert_load=loads if sparse and number % 2 else None,
            timing=StepTiming(seconds=1, tokens_per_s=64, peak_share=0.2, data_wait_s=0, elapsed_s=number),
        )
        for number in range(1, num_steps + 1)
    ]
    entry = Evaluation(
        step=num_steps,
        tokens=1,
        bits_per_byte=1.9,
        nats_per_token=3.0,
        num_targets=1,
        num_bytes=1,
        whole=True,
        seconds=1.0,
    )
    return PlotData(
        steps=steps,
        evaluations=[entry] if num_steps else [],
        compressors={"xz": 1.7, "zstd -19": 1.8},
        clip_threshold=100.0,
        continued_after=[1],
    )


SHAPES = {
    "long": plot_data(150),
    "one step": plot_data(1),
    "no step": plot_data(0),
    "dense": plot_data(4, sparse=False),
    "unobserved": plot_data(4, attention=False),
    "many layers": plot_data(4, num_layers=9),
    "one layer": plot_data(4, num_layers=1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_plot_of_every_kind_of_run_is_drawn(shape):
    for name in PLOTS:
        element = ElementTree.fromstring(themed_svg(name, SHAPES[shape]))
        assert element.tag.endswith("svg")


def test_pictures_are_written_and_not_blank(tmp_path):
    themed = write_plots(SHAPES["long"], tmp_path)
    assert list(themed) == list(PLOTS)
    for name in PLOTS:
        assert np.ptp(image.imread(tmp_path / f"{name}.png")) > 0.5
        assert LIGHT.ink in (tmp_path / f"{name}.svg").read_text()
    assert len(list(tmp_path.iterdir())) == 2 * len(PLOTS)


def test_the_same_run_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        write_plots(SHAPES["one step"], tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_colours_of_the_page_reach_the_plots():
    css = theme_css()
    for name in PLOTS:
        svg = themed_svg(name, SHAPES["long"])
        used = set(re.findall(r"var\((--\w+)\)", svg))
        assert "--ink" in used
        assert all(f"{variable}:" in css for variable in used)
        assert "#0102" not in svg  # no stand-in left
        assert "width=" not in svg.split(">", 1)[0]
    assert LIGHT.ink in css.split("@media")[0]
    assert DARK.ink in css.split("@media")[1]


def test_ids_of_different_plots_do_not_collide():
    ids = [set(re.findall(r'id="(p[0-9a-f]{8,})"', themed_svg(name, SHAPES["long"]))) for name in PLOTS]
    assert sum(len(part) for part in ids) == len(set().union(*ids)) > 0


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "plots").write_text("")
    with pytest.raises((StorageError, FileExistsError)):
        write_plots(SHAPES["one step"], tmp_path / "plots")
