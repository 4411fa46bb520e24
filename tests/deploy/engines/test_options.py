"""Options that follow from the model and the machine rather than from the guide."""

from pathlib import Path

import pytest

from chogori.deploy.fleet import Place
from chogori.errors import ConfigError
from tests.deploy.deepseek_v3 import write_folder
from tests.deploy.deployments import official, typed


def words(*arguments: str, rank: int | None = 0) -> str:
    made = typed(*arguments).fleet.groups[0].command(Place(rank=rank))
    assert made is not None
    return " ".join(made.words)


@pytest.mark.parametrize(
    ("engine", "option"),
    [("vllm", "--max-model-len 4096"), ("sglang", "--context-length 4096"), ("tensorrt-llm", "--max_seq_len 4096")],
)
def test_another_context_is_said(engine: str, option: str) -> None:
    one = ("moonlight-16b-a3b", "--gpus", "1", "--gpu", "h100", "--engine", engine, "--layout", "tp")
    assert option in words(*one, "--context", "4096")
    assert option.split()[0] not in words(*one)


@pytest.mark.parametrize(("engine", "parser"), [("vllm", "deepseek_v3"), ("sglang", "deepseekv3")])
def test_deepseek_has_a_tool_parser_of_its_own(engine: str, parser: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "DeepSeek-V3")
    made = words(str(folder), "--gpus", "16", "--gpu", "h200", "--engine", engine)
    assert f"--tool-call-parser {parser}" in made
    assert str(folder) in made


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_float32_files_are_loaded_as_bfloat16(engine: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "small", quantization_config=None, torch_dtype="float32", num_hidden_layers=4)
    one = (str(folder), "--gpus", "8", "--gpu", "b200", "--engine", engine, "--layout", "tp")
    assert "--dtype bfloat16" in words(*one)
    assert "--dtype" not in words("moonlight-16b-a3b", *one[1:])


def test_one_node_needs_no_addresses() -> None:
    for layout in ("tp", "dp-ep"):
        for engine in ("vllm", "sglang", "tensorrt-llm"):
            made = words("kimi-k2", "--gpus", "8", "--gpu", "b200", "--engine", engine, "--layout", layout)
            assert "ADDRESS" not in made
            assert "nnodes" not in made
            assert "mpirun" not in made


def test_a_pipeline_of_nodes() -> None:
    made = words("kimi-k2", "--gpus", "32", "--gpu", "h200", "--layout", "pp", rank=3)
    assert "--tensor-parallel-size 8 --pipeline-parallel-size 4 --nnodes 4 --node-rank 3" in made
    made = words("kimi-k2", "--gpus", "32", "--gpu", "h200", "--layout", "pp", "--engine", "sglang")
    assert "--tp-size 8 --pp-size 4" in made
    made = words("kimi-k2", "--gpus", "32", "--gpu", "h200", "--layout", "pp", "--engine", "tensorrt-llm")
    assert "--tp_size 8 --pp_size 4" in made


def test_deepep_is_for_nvlink() -> None:
    amd = words("kimi-k2", "--gpus", "16", "--gpu", "mi300x", "--engine", "sglang", "--layout", "dp-ep")
    assert "--ep-size 16" in amd
    assert "deepep" not in amd
    nvidia = words("kimi-k2", "--gpus", "16", "--gpu", "h200", "--engine", "sglang", "--layout", "dp-ep")
    assert "--moe-a2a-backend deepep" in nvidia


def test_a_rank_that_is_known_at_run_time_is_left_to_bash() -> None:
    group = official("--layout", "dp-ep").fleet.groups[0]
    made = group.command(Place(rank=None, rank_variable="SLURM_PROCID"))
    assert made is not None
    assert '--data-parallel-start-rank "$((SLURM_PROCID * 8))"' in made.as_bash()


def test_prefill_and_decode_apart_need_their_network_named() -> None:
    with pytest.raises(ConfigError, match="ib_device is not given"):
        typed("kimi-k2", "--gpus", "128", "--gpu", "h200", "--engine", "sglang", "--layout", "pd")
