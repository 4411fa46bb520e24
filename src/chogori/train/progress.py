"""A run on the terminal: a live panel, or plain lines where the output is not a terminal. Loads no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from chogori.train.events import (
    CheckpointSaved,
    DecayDecided,
    Evaluated,
    Event,
    Preparing,
    RunFinished,
    RunStarted,
    SampleDrawn,
    StepFinished,
    Warned,
)
from chogori.train.metrics import Evaluation, StepMetrics

PLAIN_INTERVAL_S = 5.0
"""Seconds between two step lines where there is no terminal."""
_RECENT_STEPS = 20


class Progress:
    """A listener that shows a run. Use as a context manager, so that the terminal is left in order."""

    def __init__(self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`console` writes to standard output when None."""
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._live: Live | None = None
        self._started: RunStarted | None = None
        self._total_steps = 0
        self._evaluation: Evaluation | None = None
        self._saved_step: int | None = None
        self._recent_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._losses: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._line_at = float("-inf")
        self._stage = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_live()

    def __call__(self, event: Event) -> None:
        match event:
            case Preparing():
                self._prepare(event)
            case RunStarted():
                self._start(event)
            case StepFinished(metrics=metrics):
                self._step(metrics)
            case Evaluated(evaluation=evaluation):
                self._evaluation = evaluation
                if self._live is None or evaluation.whole:
                    self._print(_evaluation_line(evaluation, self._started))
            case CheckpointSaved():
                self._saved_step = event.step
                if self._live is None:
                    self._print(f"saved {event.folder} ({event.num_bytes / 1e6:.1f} MB in {event.seconds:.1f} s)")
            case DecayDecided():
                self._total_steps = event.last_step
                self._print(
                    f"time is running out: the learning rate falls from here to the last step, {event.last_step}"
                )
            case Warned():
                self._print(Text(f"warning: {event.message}", style="yellow"))
            case SampleDrawn():
                self._stop_live()
                self._print(Text.assemble((event.prompt, "bold"), (event.text, "")))
                self._print(Text("─" * 40, style="dim"))
            case RunFinished():
                self._stop_live()
                self._print(event.hint)

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _prepare(self, event: Preparing) -> None:
        now = self._clock()
        if event.stage != self._stage or now - self._line_at >= PLAIN_INTERVAL_S:
            share = f" {event.fraction:.0%}" if 0 < event.fraction < 1 else ""
            self._print(f"{event.stage}{share}")
            self._line_at = now
        self._stage = event.stage

    def _start(self, event: RunStarted) -> None:
        self._started, self._total_steps = event, event.total_steps
        verb = (
            f"continuing {event.folder} after step {event.start_step}"
            if event.start_step
            else f"training into {event.folder}"
        )
        peak = f", matrix peak {event.peak_flop_per_s / 1e9:,.0f} GFLOP/s" if event.peak_flop_per_s else ""
        self._print(
            f"{verb}: {event.num_parameters / 1e6:,.2f} M parameters "
            f"({event.num_active_parameters / 1e6:,.2f} M active), {event.total_steps} steps of "
            f"{event.tokens_per_step:,} tokens, {event.compute}{peak}"
        )
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=False)
            self._live.start()

    def _step(self, metrics: StepMetrics) -> None:
        self._recent_s.append(metrics.timing.seconds)
        self._losses.append(metrics.loss)
        if self._live is not None:
            self._live.update(self._panel(metrics))
            return
        now = self._clock()
        if now - self._line_at >= PLAIN_INTERVAL_S or metrics.step == self._total_steps:
            self._line_at = now
            self._print(self._step_line(metrics))

    def _step_line(self, metrics: StepMetrics) -> str:
        parts = [
            f"step {metrics.step}/{self._total_steps}",
            f"loss {metrics.loss:.3f}",
            f"{metrics.timing.tokens_per_s:,.0f} tok/s",
        ]
        if metrics.timing.peak_share:
            parts.append(f"{metrics.timing.peak_share:.0%} of peak")
        if metrics.max_logits:
            parts.append(f"max logit {max(metrics.max_logits):.1f}")
        parts.append(f"{_duration(self._seconds_left(metrics))} left")
        return "  ".join(parts)

    def _panel(self, metrics: StepMetrics) -> Panel:
        assert self._started is not None
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            f"step {metrics.step}/{self._total_steps}",
            ProgressBar(total=self._total_steps, completed=metrics.step),
            f"{_duration(self._seconds_left(metrics))} left",
        )
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(style="bold")
        for name, value in self._rows(metrics):
            grid.add_row(name, Text(value))
        return Panel(Group(bar, Text(""), grid), title=str(self._started.folder), border_style="dim")

    def _rows(self, metrics: StepMetrics) -> list[tuple[str, str]]:
        timing = metrics.timing
        mean_loss = sum(self._losses) / len(self._losses)
        speed = f"{timing.tokens_per_s:,.0f} tokens/s"
        if timing.peak_share:
            speed += f", {timing.peak_share:.0%} of peak"
        rows = [
            ("loss", f"{metrics.loss:.3f} (mean of {len(self._losses)}: {mean_loss:.3f})"),
            ("speed", speed),
            ("held-out", self._heldout()),
            ("data wait", f"{timing.data_wait_s / max(timing.seconds, 1e-9):.1%} of the step"),
        ]
        if metrics.max_logits:
            layer = max(range(len(metrics.max_logits)), key=metrics.max_logits.__getitem__)
            clipped = sum(metrics.clipped_heads)
            bound = "" if metrics.max_logits_exact[layer] else "at most "
            rows.append(
                ("max logit", f"{bound}{metrics.max_logits[layer]:.1f} in layer {layer}, {clipped} heads clipped")
            )
        rows.append(("gradient norm", f"{metrics.grad_norm:.3f}"))
        if metrics.hottest_expert is not None and metrics.coldest_expert is not None:
            hot, cold = metrics.hottest_expert, metrics.coldest_expert
            balance = f"max/mean {1 + max(metrics.load_violation):.2f}"
            rows.append(
                (
                    "experts",
                    f"hottest {hot[1]} of sparse layer {hot[0]}, coldest {cold[1]} of {cold[0]}, {balance}",
                )
            )
        rows.append(("learning rate", f"{metrics.learning_rate:.2e}"))
        saved = "none yet" if self._saved_step is None else f"step {self._saved_step}"
        rows.append(("checkpoint", saved))
        return rows

    def _heldout(self) -> str:
        if self._evaluation is None:
            return "not yet"
        return f"{self._evaluation.bits_per_byte:.3f} bits per byte at step {self._evaluation.step}"

    def _seconds_left(self, metrics: StepMetrics) -> float:
        per_step = sorted(self._recent_s)[len(self._recent_s) // 2]
        return per_step * (self._total_steps - metrics.step)

    def _print(self, what: str | Text) -> None:
        self._console.print(what, markup=False, soft_wrap=not self._console.is_terminal)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _evaluation_line(evaluation: Evaluation, started: RunStarted | None) -> str:
    line = f"held-out text after step {evaluation.step}: {evaluation.bits_per_byte:.3f} bits per byte"
    if evaluation.whole and started is not None and started.compressors:
        line += " (" + ", ".join(f"{name} {bits:.3f}" for name, bits in started.compressors.items()) + ")"
    return line


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
