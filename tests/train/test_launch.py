"""The life of a run, in this process and in real ones that are killed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest
import torch

from chogori.chat.tokenizer import Tokenizer
from chogori.errors import CheckpointError, NonFiniteError, RunError, StorageError
from chogori.model.transformer import K2Model
from chogori.train import checkpoint, launch
from chogori.train.config_json import to_json
from chogori.train.events import CheckpointSaved, DecayDecided, Evaluated, RunFinished, RunStarted, StepFinished, Warned
from chogori.train.launch import train
from chogori.train.metrics import read_metrics
from chogori.train.run_folder import RunFolder


def records(folder: Path) -> list[dict[str, object]]:
    """All metrics without what the machine's speed decides."""
    return [{k: v for k, v in record.items() if k != "timing"} for record in read_metrics(folder / "metrics.jsonl")]


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


class Recorder:
    """A listener that keeps every event, and can act on one."""

    def __init__(self, react=lambda event: None) -> None:
        self.events = []
        self._react = react

    def __call__(self, event) -> None:
        self.events.append(event)
        self._react(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(autouse=True)
def quick_ends(request, monkeypatch):
    """Reports and the measurement of the peak take seconds and have tests of their own; one test here does both."""
    if "report" not in request.node.name:
        monkeypatch.setattr(launch, "write_report", lambda folder: folder.report_file)
        monkeypatch.setattr(launch, "measure_matrix_peak", lambda dtype, device: 1e9)


def test_a_run_from_text_to_report(make_config):
    recorder = Recorder()
    config = make_config(sample_prompts=("The ",))
    result = train(config, listeners=[recorder])
    assert (result.reason, result.step) == ("completed", 6)
    folder = result.folder
    steps = [record["step"] for record in records(folder.path) if record["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]
    evaluations = [(r["step"], r["whole"]) for r in records(folder.path) if r["kind"] == "evaluation"]
    assert evaluations == [(3, False), (6, True)]
    assert [type(event) for event in recorder.events if isinstance(event, RunStarted | RunFinished)] == [
        RunStarted,
        RunFinished,
    ]
    assert [event.step for event in recorder.of(CheckpointSaved)] == [3, 6]
    assert len(recorder.of(StepFinished)) == 6
    assert len(recorder.of(Evaluated)) == 2
    assert result.evaluation is not None
    assert result.evaluation.bits_per_byte > 0
    assert folder.report_file.is_file()
    assert (folder.plots / "loss.png").is_file()
    (sample,) = json.loads(folder.samples_file.read_text(encoding="utf-8"))
    assert sample["prompt"] == "The "
    model = K2Model.from_pretrained(folder.model)
    tokenizer = Tokenizer.load(folder.model)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    environment = folder.environments()[0]
    assert environment["start_step"] == 0
    assert cast(float, environment["peak_flop_per_s"]) > 0
    assert folder.load_config() == config


def test_a_complete_run_is_left_alone(make_config):
    config = make_config(steps=3)
    train(config)
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file() and path.name != ".lock"}
    recorder = Recorder()
    result = train(config, listeners=[recorder])
    assert (result.reason, result.step) == ("completed", 3)
    assert result.evaluation is not None
    assert "all 3 steps were taken before" in recorder.of(RunFinished)[0].hint
    after = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_the_same_config_gives_the_same_run(make_config, tmp_path):
    first, second = (train(make_config(out=tmp_path / name)).folder.path for name in ("a", "b"))
    assert records(first) == records(second)
    assert weights_hash(first) == weights_hash(second)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_its_step_and_continues_to_the_same_end(make_config, tmp_path, number):
    def interrupt(event):
        if isinstance(event, StepFinished) and event.metrics.step == 4:
            os.kill(os.getpid(), number)

    whole = train(make_config(out=tmp_path / "whole")).folder.path
    config = make_config(out=tmp_path / "cut")
    recorder = Recorder(interrupt)
    result = train(config, listeners=[recorder])
    assert (result.reason, result.step, result.evaluation) == ("interrupted", 4, None)
    assert "interrupted after step 4, which is saved; the same command continues it" in recorder.events[-1].hint
    assert [path.name for path in sorted(result.folder.checkpoints.iterdir())] == ["step-0000003", "step-0000004"]

    recorder = Recorder()
    assert train(config, listeners=[recorder]).reason == "completed"
    assert recorder.of(RunStarted)[0].start_step == 4
    assert records(config.out) == records(whole)
    assert weights_hash(config.out) == weights_hash(whole)


def test_a_time_limit_replays_its_decision(make_config, tmp_path):
    """The clock of the first launch decides where the decay starts; a second one with another clock must not."""

    class Clock:
        def __init__(self, step_s):
            self.now, self._step_s = 0.0, step_s

        def __call__(self):
            self.now += self._step_s
            return self.now

    config = make_config(steps=500, time_limit_s=40.0, checkpoint_interval=4, eval_interval=100, out=tmp_path / "a")
    recorder = Recorder()
    result = train(config, listeners=[recorder], clock=Clock(1.0))
    assert len(recorder.of(DecayDecided)) == 1
    decided = recorder.of(DecayDecided)[0]
    assert decided.last_step == result.step < 30

    def interrupt(event):
        if isinstance(event, StepFinished) and event.metrics.step == decided.at_step + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    config = config.replace(out=tmp_path / "b")
    assert train(config, listeners=[Recorder(interrupt)], clock=Clock(1.0)).reason == "interrupted"
    recorder = Recorder()
    assert train(config, listeners=[recorder], clock=Clock(0.001)).step == result.step
    assert recorder.of(DecayDecided) == []
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b")


def test_adamw_continues_bit_exactly_too(make_config, tmp_path):
    base = make_config()
    base = base.replace(optim=type(base.optim)(optimizer="adamw", lr=1e-3))

    def interrupt(event):
        if isinstance(event, StepFinished) and event.metrics.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = train(base.replace(out=tmp_path / "whole")).folder.path
    cut = base.replace(out=tmp_path / "cut")
    train(cut, listeners=[Recorder(interrupt)])
    train(cut)
    assert records(cut.out) == records(whole)
    assert weights_hash(cut.out) == weights_hash(whole)


# ---- real kills -----------------------------------------------------------------------------------------------------

_CHILD = """
import json, sys
from chogori.train import TrainConfig, launch
from chogori.train.config_json import from_json
launch.write_report = lambda folder: folder.report_file
launch.measure_matrix_peak = lambda dtype, device: 1e9
launch.train(from_json(TrainConfig, json.loads(sys.argv[1])))
"""


def start(config) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(to_json(config))], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def test_sigkill_at_random_moments_loses_nothing_but_time(make_config, tmp_path):
    """Kill the process with SIGKILL at random moments; the curve and the weights equal an undisturbed run's."""
    base = make_config(steps=60, checkpoint_interval=7, eval_interval=20, sequence_length=64, keep_checkpoints=2)
    undisturbed = start(base.replace(out=tmp_path / "whole"))
    config = base.replace(out=tmp_path / "killed")
    metrics, source, kills, seen = config.out / "metrics.jsonl", random.Random(5), 0, 0
    while True:
        process = start(config)
        # The moment is counted from the first new line, so that start-up time does not decide how far it gets.
        size = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= size):
            time.sleep(0.002)
        if kills < 3:
            time.sleep(source.uniform(0.0, 0.25))
            process.kill()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        process.wait()
        process.stderr.close()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
        taken = {record["step"] for record in read_metrics(metrics) if record["kind"] == "step"}
        seen = max(seen, len(taken))
    assert undisturbed.wait() == 0
    assert undisturbed.stderr is not None
    undisturbed.stderr.close()
    assert kills >= 1
    assert seen >= 1
    assert records(config.out) == records(tmp_path / "whole")
    assert weights_hash(config.out) == weights_hash(tmp_path / "whole")


def test_sigkill_during_a_checkpoint_leaves_the_one_before(make_config, tmp_path):
    config = make_config()
    code = _CHILD.replace(
        "launch.train(from_json",
        "import os, signal, chogori.train.checkpoint as checkpoint\n"
        "real, calls = checkpoint.sync_tree, []\n"
        "def kill_second(folder):\n"
        "    calls.append(folder)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(folder)\n"
        "checkpoint.sync_tree = kill_second\n"
        "launch.train(from_json",
    )
    killed = subprocess.run([sys.executable, "-c", code, json.dumps(to_json(config))], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (config.out / "checkpoints" / ".step-0000006.partial").is_dir()
    recorder = Recorder()
    assert train(config, listeners=[recorder]).reason == "completed"
    assert recorder.of(RunStarted)[0].start_step == 3
    whole = train(config.replace(out=tmp_path / "whole")).folder.path
    assert records(config.out) == records(whole)
    assert weights_hash(config.out) == weights_hash(whole)


# ---- things that go wrong -------------------------------------------------------------------------------------------


def stopped_after(config, step):
    """A run of `config` that was interrupted after `step`."""

    def interrupt(event):
        if isinstance(event, StepFinished) and event.metrics.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(config, listeners=[Recorder(interrupt)]).folder


def test_a_damaged_newest_checkpoint_costs_its_steps_and_is_reported(make_config, tmp_path):
    config = make_config()
    folder = stopped_after(config, 4)
    state = folder.checkpoints / "step-0000004" / "trainer_state.pt"
    state.write_bytes(state.read_bytes()[:-10])
    recorder = Recorder()
    train(config, listeners=[recorder])
    (warning,) = recorder.of(Warned)
    assert "step-0000004 is damaged: trainer_state.pt has changed since it was written" in warning.message
    assert "continuing from an older checkpoint" in warning.message
    assert recorder.of(RunStarted)[0].start_step == 3
    whole = train(config.replace(out=tmp_path / "whole")).folder.path
    assert records(config.out) == records(whole)


def test_a_checkpoint_of_another_shape_is_refused(make_config, tmp_path):
    config = make_config()
    folder = stopped_after(config, 4)
    other = config.replace(out=tmp_path / "other", model=config.model.replace(expert_ffn_size=16))
    foreign = stopped_after(other, 5)
    for path in folder.checkpoints.iterdir():
        path.rename(tmp_path / path.name)
    (foreign.checkpoints / "step-0000005").rename(folder.checkpoints / "step-0000005")
    with pytest.raises(CheckpointError, match="expert_ffn_size is 16 there and 32 here"):
        train(config)


def test_a_changed_config_is_refused(make_config):
    config = make_config()
    stopped_after(config, 4)
    with pytest.raises(RunError, match="seed was 0 and is now 1"):
        train(config.replace(seed=1))


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(make_config):
    config = make_config()

    def spoil(event):
        if isinstance(event, StepFinished) and event.metrics.step == 4:
            spoiled[0].data[0, 0] = float("nan")

    spoiled = []
    real = K2Model.__init__

    def remember(self, *arguments, **named):
        real(self, *arguments, **named)
        spoiled[:] = [self.lm_head.weight]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(K2Model, "__init__", remember)
        with pytest.raises(NonFiniteError, match=r"step 5.*the weight lm_head.weight holds 1 NaN"):
            train(config, listeners=[Recorder(spoil)])
    folder = RunFolder(config.out)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-0000003"]
    recorder = Recorder()
    assert train(config, listeners=[recorder]).reason == "completed"  # the spoiled weight was never saved
    assert recorder.of(RunStarted)[0].start_step == 3


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(make_config, monkeypatch):
    config = make_config()
    real = checkpoint._save_state

    def fill_up(state, file):
        if state.step == 6:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: No space left on device (os error 28)")
        real(state, file)

    monkeypatch.setattr(checkpoint, "_save_state", fill_up)
    with pytest.raises(StorageError, match=r"cannot save the checkpoint of step 6 .*the disk is full"):
        train(config)
    monkeypatch.undo()
    recorder = Recorder()
    assert train(config, listeners=[recorder]).reason == "completed"
    assert recorder.of(RunStarted)[0].start_step == 3


def test_text_that_changes_during_a_run_does_not_reach_it(make_config, tmp_path, corpus):
    """A run keeps the tokens it began with, even when the files they came from are edited before it continues."""
    copy = tmp_path / "text"
    copy.mkdir()
    for path in corpus.iterdir():
        (copy / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    config = make_config(data_folder=None)
    config = config.replace(data=type(config.data)(paths=(copy,), stdlib=False, vocab_size=300, heldout_share=0.1))
    whole = train(config.replace(out=tmp_path / "whole")).folder.path
    stopped_after(config, 4)
    (copy / "new.txt").write_text("Another text, which came later. " * 20, encoding="utf-8")
    train(config)
    assert records(config.out) == records(whole)


def test_other_threads_are_warned_about(make_config):
    config = make_config()
    folder = stopped_after(config, 4)
    (launch,) = folder.environments()
    folder.environment_file.write_text(json.dumps([{**launch, "threads": 77}]))
    recorder = Recorder()
    train(config, listeners=[recorder])
    assert any(f"threads was 77 and is now {torch.get_num_threads()}" in event.message for event in recorder.of(Warned))
