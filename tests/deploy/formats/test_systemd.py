"""Units, to systemd's own verifier where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from chogori.deploy.formats.files import write_files
from chogori.deploy.formats.systemd import systemd_files
from tests.deploy.deployments import official, typed

LARGE = ("kimi-k2", "--gpus", "128", "--gpu", "h200", "--engine", "sglang", "--layout", "pd", "--ib-device", "mlx5_0")


def test_a_unit_for_each_script(tmp_path: Path) -> None:
    files = systemd_files(official("--hosts", "10.0.0.1", "10.0.0.2"))
    assert [file.name for file in files] == [
        "node-0.sh",
        "node-1.sh",
        "gateway.sh",
        "chogori-node-0.service",
        "chogori-node-1.service",
        "chogori-gateway.service",
        "deployment.env",
    ]
    environment = files[-1].content.splitlines()
    assert "HEAD_ADDRESS=10.0.0.1" in environment
    assert "#HEAD_ADDRESS=" in systemd_files(official())[-1].content.splitlines()
    write_files(files, tmp_path)
    for script in ("node-0", "node-1", "gateway"):
        lines = (tmp_path / f"chogori-{script}.service").read_text(encoding="utf-8").splitlines()
        assert f"ExecStart=/bin/bash /opt/chogori/{script}.sh" in lines
        (after,) = [line for line in lines if line.startswith("After=")]
        assert ("chogori-node-0.service" in after) == (script == "gateway")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd: apt-get install systemd")
@pytest.mark.parametrize("arguments", [("kimi-k2", "--gpus", "16", "--gpu", "h200"), LARGE])
def test_systemd_accepts_the_units(arguments: tuple[str, ...], tmp_path: Path) -> None:
    write_files(systemd_files(typed(*arguments)), tmp_path)
    units = sorted(tmp_path.glob("*.service"))
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    # A machine without /opt/chogori still has /bin/bash, which is all that the verifier looks for.
    complaints = [line for line in result.stderr.splitlines() if str(tmp_path) in line or "chogori-" in line]
    assert complaints == []
    assert result.returncode == 0, result.stderr
