"""TensorBoard files read back with TensorBoard's own reader; W&B offline through its own SDK."""

import builtins
import importlib
import warnings
from typing import cast

import pytest

from chogori.errors import ConfigError
from chogori.train.events import Evaluated, StepFinished
from chogori.train.metrics import Evaluation
from chogori.train.run_folder import RunFolder
from chogori.train.trackers import open_trackers, scalars
from tests.train.test_metrics import step

EVALUATED = Evaluated(
    evaluation=Evaluation(
        step=2, tokens=128, bits_per_byte=2.5, nats_per_token=1.7, num_targets=9, num_bytes=12, whole=True, seconds=0.1
    )
)


def feed(config):
    folder = RunFolder(config.out)
    folder.path.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the SDKs
        with open_trackers(config, folder) as trackers:
            for event in (StepFinished(metrics=step(1)), StepFinished(metrics=step(2)), EVALUATED):
                for tracker in trackers:
                    tracker(event)
    return folder


def test_tensorboard_reads_back_every_number(make_config):
    folder = feed(make_config(tensorboard=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    found = {
        (name, entry.step): entry.value
        for name in cast("list[str]", reader.Tags()["scalars"])
        for entry in reader.Scalars(name)
    }
    events = (StepFinished(metrics=step(1)), StepFinished(metrics=step(2)), EVALUATED)
    expected = {(name, number): value for event in events for name, value, number in scalars(event)}
    assert set(found) == set(expected)
    assert ("heldout/bits_per_byte", 2) in expected
    assert ("attention/max_logit/layer_01", 1) in expected
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6)  # event files hold float32


def test_wandb_writes_an_offline_run_and_continues_it(make_config):
    config = make_config(wandb="chogori-tests")
    folder = feed(config)
    identity = (folder.path / ".wandb_id").read_text().strip()
    feed(config)
    assert (folder.path / ".wandb_id").read_text().strip() == identity
    runs = list(folder.path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert runs
    assert all(path.stat().st_size > 0 for path in runs)


@pytest.mark.parametrize(
    ("changes", "module", "words"),
    [
        ({"tensorboard": True}, "torch.utils.tensorboard", "tensorboard is True, but the package tensorboard is not"),
        ({"wandb": "x"}, "wandb", 'wandb is "x", but the package wandb is not installed; .* pip install wandb'),
    ],
)
def test_a_missing_package_is_named(make_config, monkeypatch, changes, module, words):
    real = importlib.import_module

    def without(name, package=None):
        if name == module:
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    config = make_config(**changes)
    with pytest.raises(ConfigError, match=words), open_trackers(config, RunFolder(config.out)):
        pass


def test_sdks_are_not_imported_unless_asked(make_config, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **named):
        assert name.partition(".")[0] not in ("wandb", "tensorboard")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    config = make_config()
    with open_trackers(config, RunFolder(config.out)) as trackers:
        assert trackers == []
