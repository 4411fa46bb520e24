import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chogori.errors import ConfigError, WeightsError
from chogori.model import K2Config, K2Model
from chogori.model.fp8 import SCALE_SUFFIX, dequantize_blocks, quantize_blocks
from chogori.model.tensor_layout import stored_tensors
from chogori.model.weights import IgnoredTensorsWarning, stream_tensors

MakeModel = Callable[..., K2Model]
BLOCK = (8, 16)


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """A saved model in one file."""
    make_model().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    # Cloned: the tensors are mapped from the file that is written next.
    tensors = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


def assert_same(a: K2Model, b: K2Model) -> None:
    assert a.config == b.config
    theirs = b.state_dict()
    for name, value in a.state_dict().items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs.pop(name)), name
    assert not theirs


@pytest.mark.parametrize("name", ["kimi-k2", "moonlight-16b-a3b", "nano", "tiny"])
def test_the_layout_covers_the_model_exactly(name: str) -> None:
    config = K2Config.preset(name)
    with torch.device("meta"):
        state = K2Model(config).state_dict()
    numbers = dict.fromkeys(state, 0)
    for stored in stored_tensors(config).values():
        (piece,) = stored.pieces
        whole = tuple(state[piece.parameter].shape)
        assert stored.shape == (whole if piece.expert is None else whole[1:])
        numbers[piece.parameter] += torch.Size(stored.shape).numel()
    assert numbers == {name: value.numel() for name, value in state.items()}


def test_a_model_comes_back_whole(folder: Path, make_model: MakeModel) -> None:
    loaded = K2Model.from_pretrained(folder)
    assert_same(loaded, make_model())
    assert loaded.compute_dtype == torch.float32
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_loaded_model_trains(folder: Path, tokens_BT: torch.Tensor) -> None:
    model = K2Model.from_pretrained(str(folder)).train()
    model.loss(tokens_BT, tokens_BT.roll(-1, 1)).backward()
    assert int(model.expert_load_LE().sum()) == 2 * tokens_BT.numel() * 3
    model.update_router_bias(0.1)


def test_the_asked_type_wins_and_router_biases_stay_float32(folder: Path, make_model: MakeModel) -> None:
    loaded = K2Model.from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.compute_dtype == torch.bfloat16
    original = make_model().state_dict()
    for name, value in loaded.state_dict().items():
        exact = name.endswith("e_score_correction_bias")
        assert torch.equal(value, original[name] if exact else original[name].bfloat16())


def test_without_a_type_the_one_in_the_config_is_kept(make_model: MakeModel, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, dtype=torch.bfloat16)
    assert K2Model.from_pretrained(tmp_path).compute_dtype == torch.bfloat16
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("torch_dtype") == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert K2Model.from_pretrained(tmp_path).compute_dtype == torch.bfloat16  # from the tensors themselves
    edit_config(tmp_path, torch_dtype="int8")
    with pytest.raises(WeightsError, match="names the type 'int8'; expected one of float32, bfloat16, float16"):
        K2Model.from_pretrained(tmp_path)


def test_the_meta_device_checks_and_reads_nothing(folder: Path) -> None:
    model = K2Model.from_pretrained(folder, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    edit(folder, lambda tensors: void(tensors.pop("lm_head.weight")))
    with pytest.raises(WeightsError, match=r"1 missing: lm_head\.weight"):
        K2Model.from_pretrained(folder, device="meta")


def test_streaming_gives_every_tensor_once(folder: Path, make_model: MakeModel) -> None:
    state = make_model().state_dict()
    remaining = {name: value.numel() for name, value in state.items()}
    for loaded in stream_tensors(folder):
        whole = state[loaded.parameter]
        assert torch.equal(loaded.value, whole if loaded.expert is None else whole[loaded.expert])
        remaining[loaded.parameter] -= loaded.value.numel()
    assert set(remaining.values()) == {0}


def test_experts_joined_as_transformers_holds_them_are_read(folder: Path, make_model: MakeModel) -> None:
    def join(tensors: dict[str, torch.Tensor]) -> None:
        for layer in (1, 2):
            prefix = f"model.layers.{layer}.mlp.experts"
            experts = [
                {matrix: tensors.pop(f"{prefix}.{expert}.{matrix}_proj.weight") for matrix in ("gate", "up", "down")}
                for expert in range(8)
            ]
            tensors[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat([e["gate"], e["up"]]) for e in experts])
            tensors[f"{prefix}.down_proj"] = torch.stack([e["down"] for e in experts])

    edit(folder, join)
    assert_same(K2Model.from_pretrained(folder), make_model())


def void(_: object) -> None:
    """Make an expression a statement."""


def test_what_is_missing_unexpected_or_of_another_shape_is_listed(folder: Path) -> None:
    def break_it(tensors: dict[str, torch.Tensor]) -> None:
        for expert in range(7):
            tensors.pop(f"model.layers.2.mlp.experts.{expert}.up_proj.weight")
        tensors["model.norm.weight"] = torch.ones(31)
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.ones(2, 3)
        tensors["lm_head.weight"] = torch.ones(96, 32, dtype=torch.int8)

    edit(folder, break_it)
    with pytest.raises(WeightsError) as raised:
        K2Model.from_pretrained(folder)
    message = str(raised.value)
    assert "do not fit a model of 3 layers, width 32 and 8 experts: 7 missing: model.layers.2.mlp.experts.0" in message
    assert "up_proj.weight [16, 32], " in message
    assert "and 2 more; 1 of another shape: model.norm.weight is [31], expected [32]; " in message
    assert "cannot be read (only floating point and block FP8 can): lm_head.weight is I8; " in message
    assert message.endswith("1 unexpected: model.layers.0.self_attn.q_proj.weight [2, 3]")


def test_prediction_layers_are_left_out_visibly_when_declared(folder: Path, make_model: MakeModel) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.3.eh_proj.weight"] = torch.ones(2, 3)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit(folder, add)
    with pytest.raises(WeightsError, match=r"1 unexpected: model.layers.3.eh_proj.weight \[2, 3\]"):
        K2Model.from_pretrained(folder)
    edit_config(folder, num_nextn_predict_layers=1)
    with pytest.warns(IgnoredTensorsWarning, match="holds 2 tensors that this model does not use"):
        loaded = K2Model.from_pretrained(folder)
    assert_same(loaded, make_model())


class TestFp8:
    """Folders in the official block FP8 form."""

    @pytest.fixture
    def fp8_folder(self, folder: Path) -> Path:
        def quantize(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if name.endswith("_proj.weight")]:
                quantized = quantize_blocks(tensors[name], BLOCK)
                tensors[name], tensors[name + SCALE_SUFFIX] = quantized.weight_OI, quantized.scale_PQ

        edit(folder, quantize)
        quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)}
        edit_config(folder, quantization_config=quantization, torch_dtype="bfloat16")
        return folder

    def test_it_is_read_into_the_configs_type(self, fp8_folder: Path) -> None:
        loaded = K2Model.from_pretrained(fp8_folder).state_dict()
        files = load_file(fp8_folder / "model.safetensors")
        name = "model.layers.1.mlp.experts.5.down_proj.weight"
        expected = dequantize_blocks(files[name], files[name + SCALE_SUFFIX], torch.bfloat16, block=BLOCK)
        assert torch.equal(loaded["model.layers.1.mlp.experts.down_proj"][5], expected)
        name = "model.layers.0.self_attn.q_b_proj.weight"
        expected = dequantize_blocks(files[name], files[name + SCALE_SUFFIX], torch.bfloat16, block=BLOCK)
        assert torch.equal(loaded[name], expected)

    def test_its_logits_are_near_the_originals(
        self, fp8_folder: Path, make_model: MakeModel, tokens_BT: torch.Tensor
    ) -> None:
        ours = K2Model.from_pretrained(fp8_folder, dtype=torch.float32).eval()(tokens_BT)
        expected = make_model()(tokens_BT)
        # Independent errors of up to 2⁻⁴ a weight; tokens whose expert choice flips differ by more.
        assert (ours - expected).norm() / expected.norm() < 0.25

    def test_a_missing_scale_is_named(self, fp8_folder: Path) -> None:
        name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
        edit(fp8_folder, lambda tensors: void(tensors.pop(name)))
        with pytest.raises(WeightsError, match=rf"1 missing: {name} \[4, 3\]"):
            K2Model.from_pretrained(fp8_folder)

    def test_a_scale_of_another_shape_is_named(self, fp8_folder: Path) -> None:
        name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
        edit(fp8_folder, lambda tensors: tensors.update({name: torch.ones(4, 2)}))
        with pytest.raises(WeightsError, match=rf"{name} is torch.float32 \[4, 2\]; expected torch.float32 \[4, 3\]"):
            K2Model.from_pretrained(fp8_folder)

    @pytest.mark.parametrize(
        ("quantization", "message"),
        [
            (None, "quantization_config is missing, and the weights are float8"),
            ({"quant_method": "compressed-tensors"}, "quant_method is 'compressed-tensors'; expected 'fp8'"),
            ({"quant_method": "fp8", "weight_block_size": 128}, r"weight_block_size is 128; .* such as \[128, 128\]"),
        ],
    )
    def test_another_quantisation_is_refused(self, fp8_folder: Path, quantization: object, message: str) -> None:
        edit_config(fp8_folder, quantization_config=quantization)
        with pytest.raises(WeightsError, match=message):
            K2Model.from_pretrained(fp8_folder)


class TestDamagedFolders:
    @pytest.fixture
    def sharded(self, make_model: MakeModel, tmp_path: Path) -> Path:
        make_model().save_pretrained(tmp_path / "sharded", max_shard_bytes=30_000)
        return tmp_path / "sharded"

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"nowhere is not a folder; expected one with config\.json"):
            K2Model.from_pretrained(tmp_path / "nowhere")

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        with pytest.raises(WeightsError, match=r"saved has no config.json; expected a Hugging Face weight folder"):
            K2Model.from_pretrained(folder)

    @pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("[]", "expected a JSON object")])
    def test_a_config_that_is_none(self, folder: Path, text: str, message: str) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=message):
            K2Model.from_pretrained(folder)

    def test_a_config_of_another_architecture(self, folder: Path) -> None:
        edit_config(folder, model_type="mixtral")
        with pytest.raises(ConfigError, match="model_type is 'mixtral'"):
            K2Model.from_pretrained(folder)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(WeightsError, match=r"neither model.safetensors nor .*; found pytorch_model.bin, which can"):
            K2Model.from_pretrained(folder)

    def test_a_truncated_file(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        with pytest.raises(WeightsError, match=r"model.safetensors \([\d,]+ bytes\) is not a whole safetensors file"):
            K2Model.from_pretrained(folder)
        path.write_bytes(b"<html>not found</html>")
        with pytest.raises(WeightsError, match=r"model.safetensors \(22 bytes\) is not a whole safetensors file"):
            K2Model.from_pretrained(folder)

    def test_a_missing_shard(self, sharded: Path) -> None:
        shards = sorted(sharded.glob("*.safetensors"))
        shards[1].unlink()
        with pytest.raises(WeightsError, match=rf"lacks 1 of the {len(shards)} files .*: {shards[1].name}; download"):
            K2Model.from_pretrained(sharded)

    def test_an_index_of_another_save(self, sharded: Path) -> None:
        path = sharded / "model.safetensors.index.json"
        index: dict[str, Any] = json.loads(path.read_text())
        other = next(name for name, file in index["weight_map"].items() if file.startswith("model-00002"))
        index["weight_map"][other] = sorted(set(index["weight_map"].values()))[0]
        path.write_text(json.dumps(index))
        with pytest.raises(WeightsError, match=rf"says that model-00001-.* holds {other}, and it does not"):
            K2Model.from_pretrained(sharded)
        path.write_text("{}")
        with pytest.raises(WeightsError, match=r'has no "weight_map"'):
            K2Model.from_pretrained(sharded)

    def test_a_tensor_in_two_files(self, sharded: Path) -> None:
        first, last = (sorted(sharded.glob("*.safetensors"))[at] for at in (0, -1))
        save_file(load_file(last) | {"model.embed_tokens.weight": torch.ones(2)}, last)
        with pytest.raises(WeightsError, match=rf"model.embed_tokens.weight is in both {first.name} and {last.name}"):
            K2Model.from_pretrained(sharded)
