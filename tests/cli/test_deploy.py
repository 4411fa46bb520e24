"""`chogori deploy` as it is typed: what it prints, writes and refuses."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from chogori.cli.deploy import make_deployment, parse
from chogori.cli.deploy_report import print_plan, remarks
from chogori.cli.main import main
from chogori.cli.serve import parse as parse_serve
from chogori.deploy.fleet import Access, gateway_command
from tests.deploy.deepseek_v3 import write_folder
from tests.deploy.deployments import OFFICIAL

COMMAND = ["deploy", *OFFICIAL, "--engine", "vllm"]


def test_the_plan_and_the_commands_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMAND) == 0
    shown = capsys.readouterr().out
    assert "kimi-k2  1.03 T parameters, 32.9 B active, 958.5 GiB in fp8" in shown
    assert "16 × h200 on 2 nodes" in shown
    assert "DP16 + EP16" in shown
    (chosen,) = [line for line in shown.splitlines() if line.startswith("▸")]
    assert chosen.split()[:2] == ["▸", "TP16"]
    for name in ("node-0.sh", "node-1.sh", "gateway.sh"):
        assert f"\n{name}\n" in shown
    assert "  --tensor-parallel-size 16 \\\n" in shown


def test_printed_commands_are_those_that_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is copied from a pipe is what a file would hold, whatever the width."""
    main(COMMAND)
    printed = capsys.readouterr().out
    assert main([*COMMAND, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["gateway.sh", "node-0.sh", "node-1.sh"]
    for file in files:
        assert file.read_text(encoding="utf-8") in printed
        assert file.name in said
        assert file.stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("form", "name"),
    [("systemd", "chogori-gateway.service"), ("kubernetes", "deployment.yaml"), ("slurm", "deploy.sbatch")],
)
def test_every_form_is_written(form: str, name: str, tmp_path: Path) -> None:
    assert main([*COMMAND, "--format", form, "--out", str(tmp_path)]) == 0
    assert (tmp_path / name).exists()


def test_memory_on_a_gpu_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of the table are the whole GPU."""
    plan = make_deployment(parse([*OFFICIAL, "--layout", "dp-ep"])).plan
    output = io.StringIO()
    print_plan(plan, Console(file=output, width=200))
    table = output.getvalue().split("the fullest GPU under DP16 + EP16, 140.4 GiB")[1]
    figures = [float(line[22:].split()[0]) for line in table.splitlines() if line.strip() and "note" not in line]
    assert sum(figures) == pytest.approx(140.4, abs=0.1)
    assert len(figures) == 10


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["kimi-k2", "--gpus", "8", "--gpu", "h200"], 1, "GiB are missing on 8 GPUs"),
        (["kimi-k2", "--gpus", "16"], 2, "gpu is not given; expected one of a100-40"),
        (["kimi-k2", "--gpus", "16", "--gpu", "h300"], 2, "gpu is 'h300'"),
        (["kimi-k3", "--gpus", "16", "--gpu", "h200"], 2, "did you mean 'kimi-k2'?"),
        ([*OFFICIAL, "--context", "200000"], 2, "kimi-k2 takes 1 to 131,072 tokens"),
        ([*OFFICIAL, "--context", "0"], 2, "context is 0"),
        ([*OFFICIAL, "--port", "8000"], 2, "port and engine_port are both 8000"),
        ([*OFFICIAL, "--gguf", "/k2"], 2, "gguf is for ktransformers, and engine is vllm"),
        ([*OFFICIAL, "--ib-device", "mlx5_0"], 2, "ib_device is for sglang's layout pd, and engine is vllm"),
        (["kimi-k2", "--gpu", "h200"], 2, "gpus is detect, so gpu and gpus_per_node follow from it"),
        ([*OFFICIAL, "--launch"], 2, "launch starts what fits one node, and this plan has 2"),
        ([*OFFICIAL, "--launch-timeout-s", "0"], 2, "launch_timeout_s is 0.0; expected above 0 seconds"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = main(["deploy", *arguments])
    except SystemExit as left:  # tyro prints what the record of arguments refuses, and leaves
        ended = left.code
    assert ended == status
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_must_be_known_first_is_noted(tmp_path: Path) -> None:
    def noted(*arguments: str) -> list[str]:
        return remarks(make_deployment(parse(arguments)).plan)

    assert noted(*OFFICIAL) == []
    assert noted("kimi-k2", "--gpus", "48", "--gpu", "h100", "--dtype", "bfloat16", "--concurrency", "1") == [
        "the weights must be converted from fp8 to bfloat16 first"
    ]
    assert noted("kimi-k2", "--gpus", "16", "--gpu", "a100-80") == [
        "a100-80 cannot compute in FP8: vllm expands the weights on the fly, slower"
    ]
    folder = write_folder(tmp_path / "DeepSeek-V3")
    # The published checkpoint holds a layer for drafting, which is not served: a fortieth of it.
    for stored, expected in ((673_150_000_000, 0), (688_586_727_753, 1)):
        index = {"metadata": {"total_size": stored}, "weight_map": {}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        assert len(noted(str(folder), "--gpus", "16", "--gpu", "h200")) == expected


@pytest.mark.parametrize(("access", "keys"), [("require-keys", True), ("open", False)])
def test_the_gateway_understands_its_command(access: Access, keys: bool) -> None:
    """Read back by the command line that it is written for."""
    command = gateway_command("http://10.0.0.1:8000/v1", 4096, host="0.0.0.0", port=9000, access=access)
    options = parse_serve(command.words[2:])
    assert (options.model, options.context_length) == ("http://10.0.0.1:8000/v1", 4096)
    assert (options.settings.host, options.settings.port) == ("0.0.0.0", 9000)
    assert (options.settings.require_keys, options.settings.open) == (keys, not keys)


def test_it_needs_neither_torch_nor_the_web_framework() -> None:
    script = f"""
import sys
from chogori.cli.main import main
status = main({[*COMMAND, "--format", "kubernetes"]!r})
print([name for name in ("torch", "numpy", "fastapi", "tokenizers") if name in sys.modules], status, file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == "[] 0\n"


def test_help_loads_little() -> None:
    script = """
import sys
from chogori.cli.main import main
try:
    main(["deploy", "--help"])
except SystemExit as stop:
    print([name for name in ("torch", "yaml", "httpx", "chogori.deploy.plan") if name in sys.modules], stop.code,
          file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == "[] 0\n"
    assert "kimi-k2" in result.stdout
