"""What every benchmark needs: a stopwatch that knows when others used the cores, and the result file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
QUIET_SHARE = 0.10
"""A sample counts as quiet when other processes used less than this share of one core during it."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    elapsed_s: float
    others_share: float
    """CPU time of other processes during the sample over its length."""


def timed(work: Callable[[], object], *, repeat: int = 1) -> Sample:
    """Run `work` `repeat` times and say how long that took and how busy everybody else was."""
    busy_s, own_s, start_s = _busy_s(), time.process_time(), time.perf_counter()
    for _ in range(repeat):
        work()
    elapsed_s = time.perf_counter() - start_s
    others_s = (_busy_s() - busy_s) - (time.process_time() - own_s)
    return Sample(elapsed_s=elapsed_s, others_share=max(0.0, others_s) / elapsed_s)


def _busy_s() -> float:
    """CPU seconds that all processes of the machine have used, in ticks of 10 ms; 0 where Linux's /proc is absent."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


@dataclass
class Comparison:
    """Samples of several contenders taken in turns. A turn counts when every contender's sample in it was quiet."""

    unit: str
    higher_is_better: bool
    turns: list[dict[str, tuple[float, bool]]] = field(default_factory=list[dict[str, tuple[float, bool]]])

    def add_turn(self, values: Mapping[str, tuple[float, float]]) -> None:
        """One turn: per contender its value and the share of others during it."""
        self.turns.append({name: (value, others < QUIET_SHARE) for name, (value, others) in values.items()})

    @property
    def quiet_turns(self) -> list[dict[str, float]]:
        """The turns to judge by: the quiet ones, or all when fewer than three were quiet."""
        quiet = [turn for turn in self.turns if all(ok for _, ok in turn.values())]
        chosen = quiet if len(quiet) >= 3 else self.turns
        return [{name: value for name, (value, _) in turn.items()} for turn in chosen]

    def ratio(self, ours: str, theirs: str) -> tuple[float, float, float]:
        """How many times better ours is, turn by turn: median, lowest, highest."""
        ratios = [
            turn[ours] / turn[theirs] if self.higher_is_better else turn[theirs] / turn[ours]
            for turn in self.quiet_turns
        ]
        return statistics.median(ratios), min(ratios), max(ratios)

    def rows(self, ours: str, notes: Mapping[str, str] | None = None) -> list[dict[str, object]]:
        """The rows of a result file."""
        rows: list[dict[str, object]] = []
        for name in self.quiet_turns[0]:
            values = [turn[name] for turn in self.quiet_turns]
            row: dict[str, object] = {"name": name, "ours": name == ours}
            row |= {
                "median": _short(statistics.median(values)),
                "low": _short(min(values)),
                "high": _short(max(values)),
            }
            if name != ours:
                row["ratio"] = round(self.ratio(ours, name)[0], 2)
            if notes and name in notes:
                row["note"] = notes[name]
            rows.append(row)
        return rows

    def describe_quiet(self) -> str:
        quiet = sum(all(ok for _, ok in turn.values()) for turn in self.turns)
        return f"{len(self.turns)} turns, {quiet} of them undisturbed, {len(self.quiet_turns)} counted"


def bar_line(comparison: Comparison, ours: str, theirs: str, wanted: float) -> str:
    """One line on whether a target was met."""
    median, low, high = comparison.ratio(ours, theirs)
    verdict = "met" if median >= wanted else "MISSED"
    return f"{ours} against {theirs}: {median:.2f} times ({low:.2f} to {high:.2f}); wanted {wanted}: {verdict}"


def print_rows(rows: Sequence[Mapping[str, object]], unit: str) -> None:
    """A plain table."""
    width = max(len(str(row["name"])) for row in rows)
    print(f"{'':{width}}  {'median':>10} {'low':>10} {'high':>10}  ratio   [{unit}]")
    for row in rows:
        ratio = f"{row['ratio']:>5}" if "ratio" in row else "     "
        extra = row.get("note", "")
        print(f"{row['name']:{width}}  {row['median']:>10} {row['low']:>10} {row['high']:>10}  {ratio}   {extra}")


def write_results(name: str, *, title: str, command: str, unit: str, rows: object, note: str = "") -> Path:
    """benchmarks/results/NAME.json, which the documentation's tables are drawn from."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record: dict[str, object] = {
        "title": title,
        "command": command,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "unit": unit,
        "rows": rows,
    }
    if note:
        record["note"] = note
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return path


def machine() -> str:
    """Processor, cores and matrix instructions in one line."""
    model, flags = platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = value
    except OSError:
        pass
    units = [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512_BF16")) if flag in flags.split()]
    return f"{model}, {os.cpu_count()} cores, {' and '.join(units) or 'no bfloat16 matrix units'}"


def _short(value: float) -> float:
    return round(value, 1) if value < 1000 else round(value)
