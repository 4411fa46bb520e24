"""What a run prints, on a terminal and elsewhere."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from chogori.train.events import (
    CheckpointSaved,
    DecayDecided,
    Evaluated,
    Preparing,
    RunFinished,
    RunStarted,
    SampleDrawn,
    StepFinished,
    Warned,
)
from chogori.train.metrics import Evaluation, StepMetrics, StepTiming
from chogori.train.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run_started(config, total_steps=100):
    return RunStarted(
        folder=Path("runs/x"),
        config=config,
        start_step=0,
        total_steps=total_steps,
        tokens_per_step=64,
        num_parameters=10_420_000,
        num_active_parameters=5_210_000,
        compute="bfloat16 on CPU, 2 threads",
        peak_flop_per_s=2e12,
        optimizer="",
        compressors={"xz": 1.75},
    )


def step_finished(step, seconds=2.0):
    timing = StepTiming(seconds=seconds, tokens_per_s=32, peak_share=0.12, data_wait_s=0.0, elapsed_s=step * seconds)
    return StepFinished(
        metrics=StepMetrics(
            step=step,
            tokens=64 * step,
            loss=3.25,
            learning_rate=1e-3,
            grad_norm=0.5,
            max_logits=(4.0, 12.5),
            max_logits_exact=(False, False),
            clipped_heads=(0, 0),
            load_violation=(0.5, 0.25),
            hottest_expert=(1, 7),
            coldest_expert=(0, 2),
            expert_load=None,
            timing=timing,
        )
    )


def evaluated(whole=True):
    return Evaluated(
        evaluation=Evaluation(
            step=100,
            tokens=1,
            bits_per_byte=1.61,
            nats_per_token=3.0,
            num_targets=1,
            num_bytes=1,
            whole=whole,
            seconds=1.0,
        )
    )


@pytest.fixture
def clock():
    return Clock()


def test_plain_lines_come_every_few_seconds(make_config, clock):
    out = io.StringIO()
    with Progress(console=Console(file=out, highlight=False), clock=clock) as progress:
        progress(run_started(make_config()))
        for step in range(1, 101):
            clock.now = 2.0 * step
            progress(step_finished(step))
    lines = out.getvalue().splitlines()
    # Steps of 2 s and a line at most every 5 s: every third step, 1, 4, … 100.
    assert len([line for line in lines if line.startswith("step ")]) == 34
    assert lines[1] == "step 1/100  loss 3.250  32 tok/s  12% of peak  max logit 12.5  3 min 18 s left"
    assert lines[-1].startswith("step 100/100")
    assert lines[-1].endswith("0 s left")


def test_the_run_is_introduced_in_one_line(make_config, clock):
    out = io.StringIO()
    with Progress(console=Console(file=out, highlight=False), clock=clock) as progress:
        progress(run_started(make_config()))
    assert out.getvalue() == (
        "training into runs/x: 10.42 M parameters (5.21 M active), 100 steps of 64 tokens, bfloat16 on CPU, "
        "2 threads, matrix peak 2,000 GFLOP/s\n"
    )


def test_everything_else_is_said_once_and_plainly(make_config, clock):
    out = io.StringIO()
    with Progress(console=Console(file=out, highlight=False), clock=clock) as progress:
        progress(Preparing(stage="training the vocabulary", fraction=0.0))
        progress(Preparing(stage="training the vocabulary", fraction=0.5))
        progress(run_started(make_config()))
        progress(
            CheckpointSaved(step=50, folder=Path("runs/x/checkpoints/step-0000050"), seconds=0.5, num_bytes=3_000_000)
        )
        progress(DecayDecided(at_step=60, last_step=90))
        progress(Warned(message="the disk is slow"))
        progress(evaluated())
        progress(SampleDrawn(prompt="def ", text="[bold]main[/bold]()"))
        progress(
            RunFinished(folder=Path("runs/x"), step=100, reason="completed", hint="the report is runs/x/report.html")
        )
    lines = out.getvalue().splitlines()
    assert lines[0] == "training the vocabulary"
    assert lines[2:] == [
        "saved runs/x/checkpoints/step-0000050 (3.0 MB in 0.5 s)",
        "time is running out: the learning rate falls from here to the last step, 90",
        "warning: the disk is slow",
        "held-out text after step 100: 1.610 bits per byte (xz 1.750)",
        "def [bold]main[/bold]()",  # the model's brackets are text, not markup
        "─" * 40,
        "the report is runs/x/report.html",
    ]


def test_a_terminal_gets_a_panel_with_everything(make_config, clock):
    out = io.StringIO()
    with Progress(console=Console(file=out, force_terminal=True, width=80, height=40), clock=clock) as progress:
        progress(run_started(make_config()))
        progress(step_finished(1))
        progress(evaluated(whole=False))
        progress(CheckpointSaved(step=2, folder=Path("x"), seconds=0.5, num_bytes=3))
        progress(step_finished(2))
    text = out.getvalue()
    for words in (
        "step 2/100",
        "3 min 16 s left",
        "at most 12.5 in layer 1, 0 heads clipped",
        "1.610 bits per byte at step 100",
        "hottest 7 of sparse layer 1, coldest 2 of 0, max/mean 1.50",
        "12% of peak",
        "step 2",
    ):
        assert words in text
