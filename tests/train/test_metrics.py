"""metrics.jsonl: each step once, whatever happened to the process that wrote it."""

import json

import pytest

from chogori.errors import RunError
from chogori.train.metrics import (
    Evaluation,
    MetricsFile,
    StepMetrics,
    StepTiming,
    evaluation,
    read_metrics,
    step_metrics,
)


def step(number: int) -> StepMetrics:
    return StepMetrics(
        step=number,
        tokens=64 * number,
        loss=1 / (number + 2),
        learning_rate=1e-3 / 3,
        grad_norm=0.1,
        max_logits=(1.5, 0.1 + 0.2),
        max_logits_exact=(True, False),
        clipped_heads=(0, 2),
        load_violation=(0.25,),
        hottest_expert=(0, 3),
        coldest_expert=(0, 1),
        expert_load=((1, 2, 3, 4),),
        timing=StepTiming(seconds=1.0, tokens_per_s=64.0, peak_share=0.1, data_wait_s=0.0, elapsed_s=float(number)),
    )


ENTRY = Evaluation(
    step=2, tokens=128, bits_per_byte=2.5, nats_per_token=1.7, num_targets=9, num_bytes=12, whole=False, seconds=0.1
)


def steps_in(path):
    return [(record["kind"], record["step"]) for record in read_metrics(path)]


def test_records_round_trip(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, keep_steps=0) as file:
        file.append(step(1).to_record())
        file.append(ENTRY.to_record())
        first, second = read_metrics(path)  # readable while it is being written
    assert step_metrics(first) == step(1)
    assert evaluation(second) == ENTRY


def test_lines_after_the_checkpoint_are_dropped_on_continuing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, keep_steps=0) as file:
        for number in (1, 2):
            file.append(step(number).to_record())
        file.append(ENTRY.to_record())
        file.append(step(3).to_record())
    with MetricsFile(path, keep_steps=2) as file:
        file.append(step(3).to_record())
    assert steps_in(path) == [("step", 1), ("step", 2), ("evaluation", 2), ("step", 3)]


def test_kept_lines_keep_every_bit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, keep_steps=0) as file:
        file.append(step(1).to_record())
    before = path.read_bytes()
    MetricsFile(path, keep_steps=1).close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", [1, 20, 200])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps(step(1).to_record())
    path.write_text(line + "\n" + line[:torn], encoding="utf-8")
    assert steps_in(path) == [("step", 1)]
    with MetricsFile(path, keep_steps=1) as file:
        file.append(step(2).to_record())
    assert steps_in(path) == [("step", 1), ("step", 2)]


def test_damage_before_the_end_is_reported_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps(step(1).to_record())
    path.write_text(f"{line}\n{line[:9]}\n{line}\n", encoding="utf-8")
    with pytest.raises(RunError, match="line 2 is damaged"):
        read_metrics(path)
