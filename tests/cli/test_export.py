"""`chogori export`: from a run and from a Hugging Face folder, to both forms; and what it will not overwrite."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

from chogori.chat.language_samples import SAMPLES
from chogori.chat.tokenizer import Tokenizer
from chogori.cli.export import gguf_vocabulary
from chogori.cli.main import main
from chogori.data.config import DataConfig
from chogori.model import K2Config, K2Model
from chogori.optim.config import MuonClipConfig
from chogori.train.checkpoint import CheckpointStore, TrainerState
from chogori.train.config import TrainConfig
from chogori.train.run_folder import RunFolder

CONFIG = K2Config.preset("tiny").replace(vocab_size=330)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Ten ids fewer than the model has rows."""
    return Tokenizer.train(SAMPLES.values(), vocab_size=320)


@pytest.fixture
def run(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A completed run, as training leaves it."""
    path = tmp_path / "runs" / "small"
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.start(
        TrainConfig(
            model=CONFIG, optim=MuonClipConfig(), data=DataConfig(vocab_size=320), out=path, device="cpu",
            sequence_length=32, steps=30,
        )
    )  # fmt: skip
    K2Model(CONFIG.replace(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id), seed=1).save_pretrained(
        folder.model
    )
    tokenizer.save(folder.model)
    tokenizer.save(folder.tokenizer)
    return path


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_gguf_of_a_run(run: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.gguf"
    assert main(["export", "gguf", str(run), str(out), "--dtype", "f32"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 52 tensors, ")
    found = fields(out)
    assert found["general.name"] == "small"
    assert found["tokenizer.ggml.bos_token_id"] == tokenizer.bos_id
    assert found["tokenizer.ggml.eot_token_id"] == tokenizer.id_of("<|im_end|>")
    assert len(found["tokenizer.ggml.tokens"]) == CONFIG.vocab_size
    assert "<|tool_calls_section_begin|>" in found["tokenizer.chat_template"]
    tensors = {tensor.name: tensor for tensor in GGUFReader(out).tensors}
    head = K2Model.from_pretrained(run / "model").lm_head.weight
    assert torch.equal(torch.tensor(tensors["output.weight"].data), head)


def test_gguf_of_a_folder_keeps_its_type(run: Path, tmp_path: Path) -> None:
    K2Model(CONFIG, seed=2).save_pretrained(run / "model", dtype=torch.bfloat16)
    assert main(["export", "gguf", str(run / "model"), str(tmp_path / "a.gguf")]) == 0
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    bits = torch.tensor(tensors["output.weight"].data).view(torch.bfloat16)
    assert torch.equal(bits, K2Model.from_pretrained(run / "model").lm_head.weight)


def test_q8_0_names_what_stays_f16(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "gguf", str(run), str(tmp_path / "a.gguf"), "--dtype", "q8_0"]) == 0
    # Keys of 16 numbers a head, once per layer, are all of tiny that fills no block.
    assert (
        "3 matrices are f16: their rows are no multiple of q8_0's blocks of 32, such as blk.0.attn_k_b.weight\n"
        in capsys.readouterr().out
    )


def test_hf_of_a_run_loads_in_transformers(run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out" / "hf"
    assert main(["export", "hf", str(run), str(out)]) == 0
    assert sorted(contents(out)) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    ours = K2Model.from_pretrained(run / "model").eval()
    theirs = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = AutoTokenizer.from_pretrained(out)("def main(): 世界")["input_ids"]
    assert ids == tokenizer.encode("def main(): 世界")
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits, ours(torch.tensor([ids])), rtol=1e-4, atol=1e-4)


def test_hf_has_the_asked_type_and_architecture(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    assert main(["export", "hf", str(run), str(out), "--dtype", "bf16", "--model-type", "kimi_k2"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["torch_dtype"]) == ("kimi_k2", "bfloat16")
    assert K2Model.from_pretrained(out).lm_head.weight.dtype == torch.bfloat16


def test_vocabulary_merges_lead_to_every_token_in_order(tokenizer: Tokenizer) -> None:
    vocabulary = gguf_vocabulary(tokenizer)
    assert vocabulary.size == tokenizer.vocab_size
    known = {token for token in vocabulary.base_tokens if len(token) == 1}
    assert len(known) == 256
    made: list[str] = []
    for left, right in vocabulary.merges:
        assert {left, right} <= known
        known.add(left + right)
        made.append(left + right)
    assert made == list(vocabulary.base_tokens[256:])


def test_existing_file_is_kept_unless_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.gguf"
    out.write_bytes(b"mine")
    assert main(["export", "gguf", str(run), str(out)]) == 2
    assert f"out is {out}, which exists; name another file, or replace it with --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(["export", "gguf", str(run), str(out), "--overwrite"]) == 0
    assert fields(out)["general.architecture"] == "deepseek2"


def test_gguf_into_a_folder_says_which_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "gguf", str(run), str(tmp_path), "--overwrite"]) == 2
    expected = f"out is {tmp_path}, a folder; expected a file, such as {tmp_path / 'small.gguf'}"
    assert expected in capsys.readouterr().err


def test_existing_model_is_kept_unless_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "hf"
    out.mkdir()  # an empty folder is nobody's
    assert main(["export", "hf", str(run), str(out)]) == 0
    (out / "notes.txt").write_text("of the old model")
    before = contents(out)
    assert main(["export", "hf", str(run), str(out), "--dtype", "f16"]) == 2
    assert "which holds a model; name another, or replace it with --overwrite" in capsys.readouterr().err
    assert contents(out) == before
    assert main(["export", "hf", str(run), str(out), "--dtype", "f16", "--overwrite"]) == 0
    assert K2Model.from_pretrained(out).lm_head.weight.dtype == torch.float16
    assert set(before) - set(contents(out)) == {"notes.txt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "runs"]


def test_a_model_may_replace_itself(run: Path) -> None:
    model = K2Model.from_pretrained(run / "model").state_dict()
    assert main(["export", "hf", str(run / "model"), str(run / "model"), "--overwrite"]) == 0
    again = K2Model.from_pretrained(run / "model").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.items())


def test_a_run_is_never_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert main(["export", "hf", str(run), str(run), "--overwrite"]) == 2
    assert "which holds no model but other things; name another folder" in capsys.readouterr().err
    assert contents(run) == before


def test_hf_into_a_file_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hf").write_text("mine")
    assert main(["export", "hf", str(run), str(tmp_path / "hf"), "--overwrite"]) == 2
    assert "a file; expected a folder that is empty or not there yet" in capsys.readouterr().err
    assert (tmp_path / "hf").read_text() == "mine"


def test_unfinished_run_says_which_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "model")
    store = CheckpointStore(RunFolder(run).checkpoints, keep=2)
    for step in (3, 6):
        state = TrainerState(step=step, tokens=0, elapsed_s=0.0, optimizer={}, loader={}, random={})
        store.save(K2Model(CONFIG, seed=step), state)
    (store.path_of(6) / "trainer_state.pt").write_bytes(b"damaged")
    assert main(["export", "gguf", str(run), str(tmp_path / "a.gguf"), "--dtype", "f32"]) == 0
    said = capsys.readouterr().err
    assert "step-0000006 is damaged" in said
    assert f"{run} is not complete; this is its checkpoint step-0000003\n" in said
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    assert torch.equal(torch.tensor(tensors["output.weight"].data), K2Model(CONFIG, seed=3).lm_head.weight)


def test_a_failure_puts_the_old_folder_back(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "hf"
    assert main(["export", "hf", str(run), str(out)]) == 0
    before = contents(tmp_path)
    rename = Path.rename

    def fail_for_staging(path: Path, target: Path) -> Path:
        if path.name.startswith(".hf.exporting"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_staging)
    assert main(["export", "hf", str(run), str(out), "--overwrite"]) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["guff", "a", "b"], "no form is named 'guff'; did you mean 'gguf'?; the forms are gguf, hf"),
        (["hf", "runs/nowhere", "b"], "runs/nowhere does not exist; expected the folder of a run"),
        (["gguf", "runs/nowhere", "b"], "runs/nowhere does not exist; expected the folder of a run"),
    ],
)
def test_mistakes_are_told(typed: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *typed]) != 0
    assert message in capsys.readouterr().err


def test_help_names_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 0
    shown = capsys.readouterr().out
    assert "gguf  One file for llama.cpp" in shown
    assert "hf    A Hugging Face folder" in shown


@pytest.mark.parametrize("missing", ["torch", "gguf"])
def test_a_missing_package_says_what_to_install(run: Path, tmp_path: Path, missing: str) -> None:
    script = (
        "import sys; "
        f"sys.modules[{missing!r}] = None; "  # what import finds for a package that is not installed
        "from chogori.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "export", "gguf", str(run), str(tmp_path / "a.gguf")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: chogori export needs the package {missing}; install it with: pip install 'chogori[train]'\n"
    )
