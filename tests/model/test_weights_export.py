import json
import os
import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from chogori.errors import ConfigError, StorageError, WeightsError
from chogori.model import K2Config, K2Model
from chogori.model.tensor_layout import stored_tensors
from chogori.model.weights_export import _stored_value

MakeModel = Callable[..., K2Model]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def largest_file(num_bytes: int) -> Generator[None]:
    """Let the kernel refuse any file above this size: a real write error in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_small_model_is_one_file_with_official_names(make_model: MakeModel, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "new" / "folder")
    assert sorted(contents(tmp_path / "new" / "folder")) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    with safe_open(tmp_path / "new" / "folder" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert "model.layers.0.mlp.gate_proj.weight" in names
    assert "model.layers.2.mlp.experts.7.down_proj.weight" in names
    assert "model.layers.2.mlp.gate.e_score_correction_bias" in names
    assert "model.layers.2.mlp.shared_experts.up_proj.weight" in names
    assert not any("load_E" in name for name in names)


def test_shards_stay_under_the_limit_and_the_index_names_every_tensor(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    total = 0
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
        assert all(index["weight_map"].pop(name) == path.name for name in sizes)
        assert sum(sizes.values()) <= 20_000
        total += sum(sizes.values())
    assert not index["weight_map"]
    assert index["metadata"]["total_size"] == total == 4 * sum(value.numel() for value in model.state_dict().values())
    assert (tmp_path / f"model-00001-of-{len(list(tmp_path.glob('*.safetensors'))):05d}.safetensors").exists()


def test_a_tensor_above_the_limit_has_its_own_file(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_bytes=1)
    loaded = K2Model.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_new_save_replaces_all_weights_and_keeps_other_files(
    make_model: MakeModel, small: K2Config, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "m", max_shard_bytes=30_000)
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    (tmp_path / "m" / "notes").mkdir()
    (tmp_path / "m" / "notes" / "a.txt").write_text("kept")
    other = make_model(small.replace(num_layers=2, eos_token_id=5), seed=1)
    other.save_pretrained(tmp_path / "m")
    assert sorted(contents(tmp_path / "m")) == [
        "config.json", "generation_config.json", "model.safetensors", "notes/a.txt", "tokenizer.json"
    ]  # fmt: skip
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text()) == {"eos_token_id": 5}
    assert K2Model.from_pretrained(tmp_path / "m").config == other.config
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_folder_as_it_was(make_model: MakeModel, tmp_path: Path, existing: bool) -> None:
    if existing:
        make_model().save_pretrained(tmp_path / "m")
    before = contents(tmp_path)
    with largest_file(50_000), pytest.raises(StorageError) as raised:
        make_model(seed=1).save_pretrained(tmp_path / "m")
    assert f"could not write the weights to {tmp_path / 'm'}: " in str(raised.value)
    assert "bytes are free there. What the folder held before is unchanged; free space" in str(raised.value)
    assert contents(tmp_path) == before


def test_a_failing_rename_puts_the_old_folder_back(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model().save_pretrained(tmp_path / "m")
    before = contents(tmp_path)
    rename = Path.rename

    def fail_second(self: Path, target: Path) -> Path:
        if self.name.startswith(f".m.saving-{os.getpid()}"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(StorageError, match="No space left on device"):
        make_model(seed=1).save_pretrained(tmp_path / "m")
    assert contents(tmp_path) == before


def test_saving_does_not_copy_experts_that_have_the_stored_type(make_model: MakeModel) -> None:
    model = make_model()
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    value = _stored_value(dict(model.named_parameters()), name, stored_tensors(model.config)[name], torch.float32)
    assert value.data_ptr() == model.get_parameter("model.layers.1.mlp.experts.up_proj")[3].data_ptr()


def test_what_cannot_be_saved_is_refused(make_model: MakeModel, small: K2Config, tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = K2Model(small)
    with pytest.raises(WeightsError, match="the model is on the meta device and has no values to write to"):
        empty.save_pretrained(tmp_path / "m")
    with pytest.raises(ConfigError, match="max_shard_bytes is 0; expected at least 1"):
        make_model().save_pretrained(tmp_path / "m", max_shard_bytes=0)
    with pytest.raises(ConfigError, match=r"dtype is torch.int8; expected one of torch.float32, torch.bfloat16"):
        make_model().save_pretrained(tmp_path / "m", dtype=torch.int8)
    with pytest.raises(ConfigError, match="model_type is 'llama'; expected one of deepseek_v3, kimi_k2"):
        make_model().save_pretrained(tmp_path / "m", model_type="llama")  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
