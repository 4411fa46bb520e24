"""What is recorded of each step, and the append-only file it is kept in. Loads no torch.

`metrics.jsonl` holds one JSON object a line: `{"kind": "step", …}` or `{"kind": "evaluation", …}`. Everything that the
machine's speed decides stands apart under "timing", so two runs are compared by dropping that key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

from chogori.durable_files import disk_errors, write_text_atomically
from chogori.errors import RunError


@dataclass(frozen=True, kw_only=True)
class StepTiming:
    """What the machine's speed decides; never equal between two runs."""

    seconds: float
    """Wall time of the step, without evaluation and checkpoints."""
    tokens_per_s: float
    """Tokens of the step (padding included) over `seconds`."""
    peak_share: float
    """FLOP/s of the model's products over the machine's measured matrix peak; 0 when no peak was measured."""
    data_wait_s: float
    """Seconds of the step spent waiting for the loader."""
    elapsed_s: float
    """Training seconds so far, all launches of the run together."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimizer step. All numbers but `timing` are the same for every run of one config on one machine."""

    step: int
    """1 for the first step."""
    tokens: int
    """Tokens read since the start of the run."""
    loss: float
    """Mean negative log-likelihood of the step's targets, in nats per token, before the step."""
    learning_rate: float
    """As used by the step."""
    grad_norm: float
    """Norm of all gradients together, before clipping."""
    max_logits: tuple[float, ...]
    """Per layer, the largest attention logit of the step (an upper bound where screening needed no exact value)."""
    max_logits_exact: tuple[bool, ...]
    """Per layer, whether `max_logits` was computed exactly rather than bounded by the log-sum-exp."""
    clipped_heads: tuple[int, ...]
    """Per layer, heads that QK-Clip scaled down after the step."""
    load_violation: tuple[float, ...]
    """Per sparse layer, the busiest expert's tokens over the mean, minus 1 (0 is perfect balance)."""
    hottest_expert: tuple[int, int] | None
    """(sparse layer, expert) with the largest share of its layer's tokens."""
    coldest_expert: tuple[int, int] | None
    """(sparse layer, expert) with the smallest share of its layer's tokens."""
    expert_load: tuple[tuple[int, ...], ...] | None
    """Tokens per sparse layer and expert, every `TrainConfig.load_interval` steps; None in between."""
    timing: StepTiming

    def to_record(self) -> dict[str, object]:
        return {"kind": "step", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The model on held-out text."""

    step: int
    """Steps trained before."""
    tokens: int
    """Tokens trained on before."""
    bits_per_byte: float
    """Negative log-likelihood of all targets in bits, over the raw bytes they stand for."""
    nats_per_token: float
    """The same over the number of targets."""
    num_targets: int
    """Tokens predicted."""
    num_bytes: int
    """UTF-8 bytes of the text that the targets encode."""
    whole: bool
    """Whether all held-out text was read (comparable with xz and zstd) or its beginning only."""
    seconds: float
    """Wall time."""

    def to_record(self) -> dict[str, object]:
        record: dict[str, object] = {"kind": "evaluation", **asdict(self)}
        record["timing"] = {"seconds": record.pop("seconds")}
        return record


class MetricsFile:
    """Append-only writer of `metrics.jsonl`.

    Every line is handed to the operating system at once, so a killed process loses none; `sync` makes them survive
    a power cut, and is called before each checkpoint.
    """

    def __init__(self, path: Path, *, keep_steps: int) -> None:
        """Open for appending after dropping every line of a step above `keep_steps` (they will be trained again)."""
        self.path = path
        kept = [json.dumps(record) for record in read_metrics(path) if cast(int, record["step"]) <= keep_steps]
        with disk_errors(f"write {path}"):
            write_text_atomically(path, "".join(line + "\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, object]) -> None:
        with disk_errors(f"write {self.path}"):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def sync(self) -> None:
        with disk_errors(f"write {self.path}"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, object]]:
    """All records of a metrics file, in order; empty when it does not exist.

    A torn last line (the process died while writing it) is dropped; a broken line before it raises RunError.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records: list[dict[str, object]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("not a record with a step")
        except ValueError as error:
            # Only the piece after the last newline can be torn: each line is written with its newline at once.
            if number == len(lines):
                break
            raise RunError(f"{path}, line {number} is damaged ({error}); remove that line to continue") from error
        records.append(cast("dict[str, object]", record))
    return records


def step_metrics(record: Mapping[str, object]) -> StepMetrics:
    """The typed form of a "step" line."""
    fields = {name: _as_tuples(value) for name, value in record.items() if name not in ("kind", "timing")}
    timing = StepTiming(**cast("dict[str, float]", record["timing"]))
    return StepMetrics(timing=timing, **fields)  # pyright: ignore[reportArgumentType]


def evaluation(record: Mapping[str, object]) -> Evaluation:
    """The typed form of an "evaluation" line."""
    fields = {name: value for name, value in record.items() if name not in ("kind", "timing")}
    fields.update(cast("dict[str, object]", record["timing"]))
    return Evaluation(**fields)  # pyright: ignore[reportArgumentType]


def _as_tuples(value: object) -> object:
    if isinstance(value, list):
        return tuple(_as_tuples(item) for item in cast("list[object]", value))
    return value
