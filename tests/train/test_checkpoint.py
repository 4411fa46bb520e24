"""Checkpoints: every bit comes back, and no fault loses one that was good."""

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from chogori import durable_files
from chogori.errors import CheckpointError, StorageError
from chogori.model import weights_export
from chogori.model.config import K2Config
from chogori.model.transformer import K2Model
from chogori.train import checkpoint
from chogori.train.checkpoint import (
    CheckpointStore,
    TrainerState,
    load_model,
    load_state,
    random_states,
    restore_random_states,
)

CONFIG = K2Config.preset("tiny").replace(bos_token_id=1, eos_token_id=2)


@pytest.fixture
def model() -> K2Model:
    model = K2Model(CONFIG, seed=3)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-1, 1)
    return model


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def state(step: int) -> TrainerState:
    moment = torch.linspace(-1, 1, 1000) / 3
    return TrainerState(
        step=step,
        tokens=64 * step,
        elapsed_s=0.1 * step,
        optimizer={"state": {0: {"momentum": moment, "step": torch.tensor(7.0)}}, "param_groups": [{"lr": 1 / 3}]},
        loader={"next_row": 12},
        random=random_states(),
    )


def hashes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_bit_comes_back(store, model):
    written = state(5)
    num_bytes = store.save(model, written)
    path, damage = store.newest_good()
    assert path is not None
    assert path.name == "step-0000005"
    assert damage == []
    assert num_bytes == sum(file.stat().st_size for file in path.iterdir())
    restored = load_model(path, CONFIG)
    for (name, expected), (_, found) in zip(model.state_dict().items(), restored.state_dict().items(), strict=True):
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), name
    read = load_state(path)
    assert (read.step, read.tokens, read.elapsed_s, read.loader) == (5, 320, 0.5, {"next_row": 12})
    found_state, wanted_state = (cast("dict[int, dict[str, Tensor]]", s.optimizer["state"]) for s in (read, written))
    assert all(torch.equal(found_state[0][name], wanted) for name, wanted in wanted_state[0].items())
    assert read.optimizer["param_groups"] == written.optimizer["param_groups"]


def test_generators_continue(store, model):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    store.save(model, state(1))
    expected = (random.random(), np.random.rand(), torch.rand(3).tolist())
    path, _ = store.newest_good()
    assert path is not None
    restore_random_states(load_state(path).random)
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected


def test_the_newest_are_kept(store, model):
    for step in (1, 2, 3, 10):
        store.save(model, state(step))
    assert [path.name for path in store.paths()] == ["step-0000003", "step-0000010"]


def test_a_step_trained_again_replaces_its_checkpoint(store, model):
    store.save(model, state(2))
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    store.save(model, state(2))
    restored = load_model(store.paths()[0], CONFIG)
    assert torch.equal(restored.lm_head.weight, model.lm_head.weight)


def test_leftovers_of_a_kill_are_ignored_and_removed(store, model):
    store.save(model, state(1))
    for name in (".step-0000002.partial", ".step-0000000.removed"):
        shutil.copytree(store.paths()[0], store.folder / name)
    assert store.newest_good()[0] == store.paths()[-1] == store.path_of(1)
    store.remove_leftovers()
    assert [path.name for path in store.folder.iterdir()] == ["step-0000001"]


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.pt", "config.json", "checksums.json"])
@pytest.mark.parametrize("fault", ["cut", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over_and_named(store, model, name, fault):
    store.save(model, state(1))
    store.save(model, state(2))
    file = store.path_of(2) / name
    content = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        file.write_bytes(content[:middle] if fault == "cut" else content[:middle] + flipped + content[middle + 1 :])
    path, damage = store.newest_good()
    assert path == store.path_of(1)
    assert len(damage) == 1
    assert "step-0000002 is damaged" in damage[0]
    # A flipped bit in the list of checksums shows as a file that does not fit it.
    assert name in damage[0] or name == "checksums.json"


def test_nothing_good_is_an_error_that_names_all(store, model):
    for step in (1, 2):
        store.save(model, state(step))
        (store.path_of(step) / "trainer_state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError) as refusal:
        store.newest_good()
    words = str(refusal.value)
    assert "no checkpoint of" in words
    assert "step-0000001 is damaged" in words
    assert "step-0000002 is damaged" in words
    assert "or delete" in words


def test_no_checkpoint_is_no_error(store):
    assert store.newest_good() == (None, [])


def test_a_model_of_another_shape_is_refused_with_its_fields(store, model):
    store.save(model, state(1))
    with pytest.raises(CheckpointError) as refusal:
        load_model(store.path_of(1), CONFIG.replace(hidden_size=32, num_heads=2))
    assert "hidden_size is 64 there and 32 here; num_heads is 4 there and 2 here" in str(refusal.value)


def test_weights_that_do_not_fit_their_config_are_refused(store, model):
    store.save(model, state(1))
    file = store.path_of(1) / "config.json"
    file.write_text(file.read_text().replace('"hidden_size": 64', '"hidden_size": 32'))
    with pytest.raises(CheckpointError, match=r"the weights of .*step-0000001 do not fit: "):
        load_model(store.path_of(1), CONFIG)


def test_a_state_of_another_version_is_refused(store, model):
    store.save(model, state(1))
    torch.save({"iteration": 3}, store.path_of(1) / "trainer_state.pt")
    with pytest.raises(CheckpointError, match="is not a training state of this version"):
        load_state(store.path_of(1))


# ---- full disks -----------------------------------------------------------------------------------------------------


def full(*arguments, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (checkpoint, "_save_state"),
        (checkpoint, "_write_checksums"),
        (checkpoint, "sync_tree"),
        (weights_export, "save_file"),
        (durable_files.os, "fsync"),
    ],
)
def test_a_disk_that_fills_up_at_any_point_leaves_older_checkpoints(store, model, monkeypatch, owner, name):
    store.save(model, state(1))
    before = hashes(store.folder)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(StorageError, match="space"):
            store.save(model, state(2))
    assert hashes(store.folder) == before
    store.save(model, state(2))  # and with room again, training goes on
    assert store.newest_good() == (store.path_of(2), [])


def test_too_little_room_is_noticed_before_writing(store, model, monkeypatch):
    store.save(model, state(1))
    before = hashes(store.folder)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(durable_files.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        StorageError, match=r"save the checkpoint of step 2 \(older .* intact\): it needs .* MB .* 0.0 MB left"
    ):
        store.save(model, state(2))
    assert hashes(store.folder) == before


# A file system of 3.5 MB in a mount namespace of its own: room for a few checkpoints of 0.9 MB.
_ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=3500k none "$1"
exec "$2" - "$1" <<'CODE'
import sys
from pathlib import Path
from typing import cast
from chogori.errors import StorageError
from chogori.model.config import K2Config
from chogori.model.transformer import K2Model
from chogori.train import checkpoint
from chogori.train.checkpoint import CheckpointStore, TrainerState, random_states
checkpoint.require_space = lambda *arguments: None  # so that the writes themselves meet the full disk
store = CheckpointStore(Path(sys.argv[1]) / "checkpoints", keep=9)
model = K2Model(K2Config.preset("tiny"), seed=0)
step = 0
try:
    while True:
        step += 1
        state = TrainerState(step=step, tokens=0, elapsed_s=0.0, optimizer={}, loader={}, random=random_states())
        store.save(model, state)
except StorageError as error:
    print("error:", error)
path, damage = store.newest_good()
print("good:", path.name, damage, "failed:", step)
print("left:", sorted(entry.name for entry in store.folder.iterdir()))
CODE
"""


def test_a_really_full_disk(tmp_path):
    probe = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return  # this machine lets no user mount anything; the faked disks above cover the same paths
    done = subprocess.run(
        [*probe[:-1], "bash", "-c", _ON_A_SMALL_DISK, "bash", str(tmp_path), sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is full" in done.stdout or "No space left" in done.stdout
    good = done.stdout.split("good: ")[1].split()
    failed = int(done.stdout.split("failed: ")[1].split()[0])
    assert failed > 1
    assert good[0] == f"step-{failed - 1:07d}"
    assert ".partial" not in done.stdout.split("left: ")[1]


def test_checkpoints_are_ordinary_model_folders(store, model):
    store.save(model, state(1))
    tensors = safetensors.torch.load_file(store.path_of(1) / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert torch.equal(
        tensors["model.layers.1.mlp.experts.3.up_proj.weight"],
        model.state_dict()["model.layers.1.mlp.experts.up_proj"][3],
    )
