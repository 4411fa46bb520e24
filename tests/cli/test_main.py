"""The entry point: verbs, misspellings, and how each kind of failure ends."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from chogori import __version__
from chogori.cli import report, train
from chogori.cli.main import VERBS, main
from chogori.errors import ChogoriError, ConfigError, RunError


def fail_with(error: BaseException):
    def stand_in(arguments: Sequence[str]) -> int:
        raise error

    return stand_in


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert main([]) == 0
    assert capsys.readouterr().out == shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"chogori {__version__}\n"


def test_misspelt_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "nano"]) == 2
    message = capsys.readouterr().err
    assert message == "error: no command is named 'trian'; did you mean 'train'?; see chogori --help\n"


def test_verb_like_nothing_suggests_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ChogoriError("the work failed"), 1),
        (RunError("runs/x is busy"), 1),
        (ConfigError("steps is 0; expected at least 1"), 2),
    ],
)
def test_expected_failure_is_one_message(
    error: ChogoriError, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "main", fail_with(error))
    assert main(["train", "nano"]) == status
    captured = capsys.readouterr()
    assert captured.err == f"error: {error}\n"
    assert captured.out == ""


def test_brackets_in_a_message_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "main", fail_with(ChogoriError("optim.betas[0] is [red]")))
    main(["train", "nano"])
    assert capsys.readouterr().err == "error: optim.betas[0] is [red]\n"


def test_own_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "main", fail_with(AssertionError("a bug of ours")))
    with pytest.raises(AssertionError, match="a bug of ours"):
        main(["train", "nano"])


def test_missing_torch_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "main", fail_with(ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert main(["report", "runs/nano"]) == 1
    assert "chogori report needs the package torch; install it with: pip install 'chogori[train]'" in (
        capsys.readouterr().err
    )


def test_other_missing_module_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "main", fail_with(ModuleNotFoundError("No module named 'x'", name="x")))
    with pytest.raises(ModuleNotFoundError):
        main(["report", "runs/nano"])


def test_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "main", fail_with(KeyboardInterrupt()))
    assert main(["train", "nano"]) == 130


def test_reader_that_leaves_early_is_no_error() -> None:
    """`chogori --help | true`: writing to a closed pipe."""
    command = [sys.executable, "-u", "-m", "chogori", "train"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["train", "nano", "--help"], ["sample", "--help"], ["report", "--help"]],
)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    script = f"""
import sys
from chogori.cli.main import main
try:
    status = main({arguments!r})
except SystemExit as stop:
    status = stop.code
print([name for name in ("torch", "matplotlib", "tokenizers") if name in sys.modules], status, file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == "[] 0\n"
    assert result.stdout
