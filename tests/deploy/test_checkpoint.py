"""Names and folders of models, and what is refused."""

import json
from pathlib import Path

import pytest

from chogori.deploy.checkpoint import find_checkpoint
from chogori.errors import ConfigError, WeightsError
from tests.deploy.deepseek_v3 import write_folder


def test_presets_have_their_published_weights() -> None:
    kimi = find_checkpoint("kimi-k2")
    assert (kimi.location, kimi.format, kimi.is_folder) == ("moonshotai/Kimi-K2-Instruct", "fp8", False)
    moonlight = find_checkpoint("moonlight-16b-a3b", weights="/models/moonlight")
    assert (moonlight.location, moonlight.format, moonlight.is_folder) == ("/models/moonlight", "bfloat16", True)


def test_converted_weights_are_marked() -> None:
    assert not find_checkpoint("kimi-k2", format="fp8").converted
    assert find_checkpoint("kimi-k2", format="bfloat16").converted


def test_a_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("own").location == str(tmp_path / "own")
    assert find_checkpoint("kimi-k2", weights="own").location == str(tmp_path / "own")
    assert find_checkpoint("kimi-k2", weights="./elsewhere").location == str(tmp_path / "elsewhere")


def test_the_index_says_how_much_is_stored(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    assert find_checkpoint(str(folder)).stored_bytes is None
    index = {"metadata": {"total_size": 688_586_727_753}, "weight_map": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert find_checkpoint(str(folder)).stored_bytes == 688_586_727_753


def test_a_misspelt_preset() -> None:
    with pytest.raises(ConfigError, match=r"model is 'kimi-k3', neither a preset .* did you mean 'kimi-k2'\?"):
        find_checkpoint("kimi-k3")


def test_what_a_folder_must_not_be(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        find_checkpoint(str(tmp_path))
    four_bits = write_folder(tmp_path / "int4", quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(WeightsError, match=r"quantization_config is 'compressed-tensors' .* expected none, or 'fp8'"):
        find_checkpoint(str(four_bits))
    with pytest.raises(WeightsError, match="torch_dtype is 'int8'"):
        find_checkpoint(str(write_folder(tmp_path / "int8", quantization_config=None, torch_dtype="int8")))
    with pytest.raises(ConfigError, match="model_type is 'llama'"):
        find_checkpoint(str(write_folder(tmp_path / "llama", model_type="llama")))
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(WeightsError, match="holds list; expected a JSON object"):
        find_checkpoint(str(tmp_path))
