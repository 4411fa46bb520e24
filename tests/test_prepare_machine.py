"""scripts/prepare-machine on machines made of stand-in programs: nothing is installed here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare-machine"


class Machine:
    """A PATH that holds bash and whatever programs are put on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        bash = shutil.which("bash")
        assert bash is not None
        (folder / "bash").symlink_to(bash)

    def put(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!{self.folder}/bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def put_python(self, *, modules: str = "works", version: str = "works") -> None:
        """A Python whose checks, told apart by a word in their code, succeed ("works") or fail."""
        self.put(
            "python3",
            f"""case "$*" in
                -V) echo Python 3.9.2;;
                *version_info*) [ {version} = works ];;
                *ensurepip*) [ {modules} = works ];;
            esac""",
        )

    def prepare(self, *purpose: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "bash"), str(SCRIPT), "python3", *purpose],
            env={"PATH": str(self.folder)},
            capture_output=True,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_complete_machine_is_left_alone(machine: Machine) -> None:
    machine.put_python()
    result = machine.prepare()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("python", "packages"),
    [
        ({"modules": "fails"}, "python3-venv"),
        (None, "python3 python3-venv"),
    ],
)
def test_user_is_told_what_to_install(machine: Machine, python: dict[str, str] | None, packages: str) -> None:
    machine.put("id", "echo 1000")
    machine.put("apt-get", "echo must not run; exit 1")
    if python is not None:
        machine.put_python(**python)
    result = machine.prepare()
    assert result.returncode == 1
    assert result.stderr == f"System packages are missing; install them with: sudo apt-get install {packages}\n"
    assert result.stdout == ""


def test_root_installs(machine: Machine) -> None:
    machine.put("id", "echo 0")
    machine.put("apt-get", f'echo "$@" >> {machine.folder}/asked')
    machine.put_python(modules="fails")
    result = machine.prepare()
    assert result.returncode == 0, result.stderr
    assert (machine.folder / "asked").read_text(encoding="utf-8") == "update -qq\ninstall -qq -y python3-venv\n"


@pytest.fixture
def without_test_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script looks beyond the path, where Debian keeps PostgreSQL's programs: on this machine, perhaps, too."""
    elsewhere = tmp_path / "prepare-machine"
    elsewhere.write_text(SCRIPT.read_text(encoding="utf-8").replace("/usr/lib/postgresql", f"{tmp_path}/none"))
    monkeypatch.setattr(f"{__name__}.SCRIPT", elsewhere)


@pytest.mark.usefixtures("without_test_packages")
def test_root_installs_what_the_tests_need(machine: Machine) -> None:
    machine.put("id", "echo 0")
    machine.put("apt-get", f'echo "$@" >> {machine.folder}/asked')
    machine.put_python()
    assert machine.prepare().returncode == 0
    assert not (machine.folder / "asked").exists(), "only the tests need it"
    assert machine.prepare("tests").returncode == 0
    assert (machine.folder / "asked").read_text(encoding="utf-8") == "update -qq\ninstall -qq -y postgresql systemd\n"


@pytest.mark.usefixtures("without_test_packages")
def test_user_is_told_which_tests_are_skipped_and_goes_on(machine: Machine) -> None:
    machine.put("id", "echo 1000")
    machine.put("apt-get", "echo must not run; exit 1")
    machine.put_python()
    result = machine.prepare("tests")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == (
        "Tests with PostgreSQL are skipped; to run them: sudo apt-get install postgresql\n"
        "Tests of systemd units are skipped; to run them: sudo apt-get install systemd\n"
    )
    machine.put("initdb", "exit 0")
    machine.put("systemd-analyze", "exit 0")
    assert machine.prepare("tests").stderr == ""


def test_old_python_is_named(machine: Machine) -> None:
    machine.put_python(version="fails")
    result = machine.prepare()
    assert result.returncode == 1
    assert result.stderr == (
        "Python 3.9.2 is too old: Chogori needs 3.11 or later. Name another Python: make PYTHON=python3.12\n"
    )


def test_this_machine_is_complete() -> None:
    """The tests run on a machine that `make test` prepared."""
    assert subprocess.run([str(SCRIPT), sys.executable, "tests"]).returncode == 0
