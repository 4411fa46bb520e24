"""TensorBoard and Weights & Biases, as listeners. Their SDKs are imported only when a config asks for them."""

from __future__ import annotations

import contextlib
import importlib
import secrets
from collections.abc import Generator
from typing import Any, Protocol

from chogori.errors import ConfigError
from chogori.train.config import TrainConfig
from chogori.train.config_json import to_json
from chogori.train.events import Evaluated, Event, Listener, StepFinished
from chogori.train.metrics import Evaluation, StepMetrics
from chogori.train.run_folder import RunFolder


class _Tracker(Protocol):
    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def open_trackers(config: TrainConfig, folder: RunFolder) -> Generator[list[Listener]]:
    """The trackers that `config` asks for, closed at the end.

    Raises ConfigError when a tracker's package is not installed.
    """
    with contextlib.ExitStack() as stack:
        trackers: list[_Tracker] = []
        if config.tensorboard:
            trackers.append(TensorBoardTracker(folder))
            stack.callback(trackers[-1].close)
        if config.wandb is not None:
            trackers.append(WandbTracker(config, folder, project=config.wandb))
            stack.callback(trackers[-1].close)
        yield list(trackers)


class TensorBoardTracker:
    """Writes event files into `RUN/tensorboard`; look at them with `tensorboard --logdir RUN`."""

    def __init__(self, folder: RunFolder) -> None:
        module = _import("torch.utils.tensorboard", package="tensorboard", asked="tensorboard is True")
        self._writer = module.SummaryWriter(str(folder.path / "tensorboard"))

    def __call__(self, event: Event) -> None:
        for name, value, step in scalars(event):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Reports to a Weights & Biases project; one W&B run per run folder, continued with it."""

    def __init__(self, config: TrainConfig, folder: RunFolder, *, project: str) -> None:
        module = _import("wandb", package="wandb", asked=f'wandb is "{project}"')
        record = to_json(config)
        self._run: Any = module.init(
            project=project,
            name=folder.path.name,
            dir=str(folder.path),
            config=record,
            resume="allow",
            id=_wandb_id(folder),
        )
        # Steps trained again after a kill would be refused as going backwards; an axis of our own is not.
        self._run.define_metric("*", step_metric="step")

    def __call__(self, event: Event) -> None:
        values = {name: value for name, value, _ in scalars(event)}
        steps = {step for _, _, step in scalars(event)}
        if values:
            self._run.log({**values, "step": max(steps)})

    def close(self) -> None:
        self._run.finish()


def scalars(event: Event) -> list[tuple[str, float, int]]:
    """(name, value, step) of every number in an event that is worth a curve."""
    match event:
        case StepFinished(metrics=metrics):
            return [(name, value, metrics.step) for name, value in _step_scalars(metrics).items()]
        case Evaluated(evaluation=evaluation):
            return [(name, value, evaluation.step) for name, value in _evaluation_scalars(evaluation).items()]
        case _:
            return []


def _step_scalars(metrics: StepMetrics) -> dict[str, float]:
    values = {
        "train/loss": metrics.loss,
        "train/learning_rate": metrics.learning_rate,
        "train/grad_norm": metrics.grad_norm,
        "train/tokens": float(metrics.tokens),
        "speed/tokens_per_s": metrics.timing.tokens_per_s,
        "speed/peak_share": metrics.timing.peak_share,
        "speed/data_wait_s": metrics.timing.data_wait_s,
    }
    if metrics.max_logits:
        values["attention/clipped_heads"] = float(sum(metrics.clipped_heads))
    for layer, logit in enumerate(metrics.max_logits):
        values[f"attention/max_logit/layer_{layer:02d}"] = logit
    for layer, violation in enumerate(metrics.load_violation):
        values[f"experts/load_violation/sparse_layer_{layer:02d}"] = violation
    return values


def _evaluation_scalars(evaluation: Evaluation) -> dict[str, float]:
    name = "heldout" if evaluation.whole else "heldout_part"
    return {f"{name}/bits_per_byte": evaluation.bits_per_byte, f"{name}/nats_per_token": evaluation.nats_per_token}


def _wandb_id(folder: RunFolder) -> str:
    """An id that a continued run finds again: kept beside the run."""
    file = folder.path / ".wandb_id"
    if file.exists():
        return file.read_text(encoding="utf-8").strip()

    identity = secrets.token_hex(8)
    file.write_text(identity + "\n", encoding="utf-8")
    return identity


def _import(module: str, *, package: str, asked: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{asked}, but the package {package} is not installed; install it with: pip install {package}"
        ) from error
