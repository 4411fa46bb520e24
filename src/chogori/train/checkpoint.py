"""Checkpoints that are whole or absent, and from which training continues with the same bits.

A checkpoint is a folder `step-0000100`: the model as a Hugging Face folder (float32, so `K2Model.from_pretrained` and
transformers load it as it is), `trainer_state.pt` with everything else, and `checksums.json`, written last. It is put
together under another name, forced to disk and renamed, so that neither a kill nor a full disk leaves a half one.

The experts' load counters need no place here: they are zero between two steps, when checkpoints are taken. The
router's bias is among the model's weights.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from chogori.durable_files import disk_errors, require_space, sync_folder, sync_tree
from chogori.errors import CheckpointError, WeightsError
from chogori.model.config import K2Config
from chogori.model.transformer import K2Model

STATE_FILE = "trainer_state.pt"
CHECKSUM_FILE = "checksums.json"
_SLACK_BYTES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What a run needs to continue, besides the model's weights."""

    step: int
    """Optimizer steps taken."""
    tokens: int
    """Tokens read."""
    elapsed_s: float
    """Training seconds so far."""
    optimizer: dict[str, object]
    """`state_dict` of the optimizer."""
    loader: dict[str, int]
    """`state_dict` of the loader: the next batch."""
    random: dict[str, object]
    """States of Python's, numpy's and torch's generators."""


def random_states() -> dict[str, object]:
    """States of the process-wide generators, in types that torch.load accepts with weights_only."""
    kind, keys, position, has_gauss, cached = cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())
    states: dict[str, object] = {
        "python": random.getstate(),
        "numpy": (kind, [int(key) for key in keys], position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: Mapping[str, object]) -> None:
    """Undo whatever was drawn since `random_states`."""
    random.setstate(cast("tuple[object, ...]", states["python"]))
    kind, keys, position, has_gauss, cached = cast("tuple[str, list[int], int, int, float]", states["numpy"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(cast(Tensor, states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cast("list[Tensor]", states["cuda"]))


class CheckpointStore:
    """The checkpoints of one run, newest `keep` of them."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def paths(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def path_of(self, step: int) -> Path:
        return self.folder / f"step-{step:07d}"

    def remove_leftovers(self) -> None:
        """Delete what an interrupted save or removal left. Call it under the run's lock."""
        for path in self.folder.glob(".*"):
            shutil.rmtree(path)

    def save(self, model: K2Model, state: TrainerState) -> int:
        """Write a checkpoint and remove the oldest beyond `keep`; returns its bytes.

        Raises StorageError when the disk is full or not writable; older checkpoints stay as they were.
        """
        final = self.path_of(state.step)
        partial = self.folder / f".{final.name}.partial"
        action = f"save the checkpoint of step {state.step} (older checkpoints in {self.folder} are intact)"
        with disk_errors(action):
            self.folder.mkdir(parents=True, exist_ok=True)
            require_space(self.folder, _bytes_of(model, state) + _SLACK_BYTES, action)
        try:
            with disk_errors(action):
                model.save_pretrained(partial)
                _save_state(state, partial / STATE_FILE)
                num_bytes = _write_checksums(partial)
                sync_tree(partial)
                if final.exists():  # of an earlier launch whose later steps are being trained again
                    self._remove(final)
                partial.rename(final)
                sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in self.paths()[: -self._keep]:
            self._remove(old)
        return num_bytes

    def _remove(self, path: Path) -> None:
        # Renamed first: a kill in the middle of the deletion must not leave a checkpoint with missing files.
        doomed = path.with_name(f".{path.name}.removed")
        path.rename(doomed)
        shutil.rmtree(doomed)

    def newest_good(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose files are as they were written, and what is wrong with newer ones.

        (None, []) when there is none at all. Raises CheckpointError when there are some and all are damaged.
        """
        damage: list[str] = []
        for path in reversed(self.paths()):
            try:
                verify(path)
            except CheckpointError as error:
                damage.append(str(error))
            else:
                return path, damage
        if damage:
            raise CheckpointError(
                f"no checkpoint of {self.folder} can be used: {'; '.join(damage)}. Restore one from a copy, or delete "
                f"{self.folder} to train from the start"
            )
        return None, []


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its checksum. Raises CheckpointError naming the first that differs."""
    checksum_file = path / CHECKSUM_FILE
    try:
        listed = cast("dict[str, str]", json.loads(checksum_file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its {CHECKSUM_FILE} cannot be read ({error})") from error
    for name, expected in listed.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} is damaged: {name} is missing")
        if _sha256(file) != expected:
            raise CheckpointError(f"{path} is damaged: {name} has changed since it was written")


def load_model(path: Path, config: K2Config) -> K2Model:
    """The float32 model of a checkpoint. Raises CheckpointError when it is not a model of `config`."""
    try:
        model = K2Model.from_pretrained(path, dtype=torch.float32)
    except WeightsError as error:
        raise CheckpointError(f"the weights of {path} do not fit: {error}") from error
    if model.config != config:
        pairs = (
            (entry.name, getattr(model.config, entry.name), getattr(config, entry.name)) for entry in fields(config)
        )
        found = "; ".join(
            f"{name} is {there!r} there and {here!r} here" for name, there, here in pairs if there != here
        )
        raise CheckpointError(
            f"{path} holds a model of another shape: {found}. Continue with the config it was made with, or start a "
            "new run"
        )
    return model


def load_state(path: Path) -> TrainerState:
    """The training state of a checkpoint. Raises CheckpointError when the file is not one."""
    file = path / STATE_FILE
    try:
        record = torch.load(file, map_location="cpu", weights_only=True)
        return TrainerState(**record)
    except Exception as error:
        raise CheckpointError(f"{file} is not a training state of this version: {error}") from error


def _save_state(state: TrainerState, file: Path) -> None:
    torch.save({entry.name: getattr(state, entry.name) for entry in fields(state)}, file)


def _write_checksums(folder: Path) -> int:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    sums = {path.name: _sha256(path) for path in files}
    (folder / CHECKSUM_FILE).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes_of(model: K2Model, state: TrainerState) -> int:
    weights = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    return weights + _tensor_bytes(state.optimizer)


def _tensor_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_tensor_bytes(item) for item in cast("Mapping[object, object]", value).values())
    if isinstance(value, list | tuple):
        return sum(_tensor_bytes(item) for item in cast("list[object]", value))
    return 0
