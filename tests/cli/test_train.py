"""What `chogori train` makes of its arguments, and real runs of the tiny recipe through the real program."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chogori.cli import plan
from chogori.cli.main import main
from chogori.cli.train import parse
from chogori.errors import ConfigError, RunError
from chogori.recipes import RECIPES, nano, tiny
from chogori.train.config_json import to_json
from chogori.train.run_folder import RunFolder


def write_run(folder: Path, **changes: object) -> Path:
    """A run folder as training leaves it at its start."""
    folder.mkdir(parents=True)
    config = tiny().replace(out=folder, **changes)
    (folder / "config.json").write_text(json.dumps(to_json(config)), encoding="utf-8")
    return folder


def test_recipe_alone() -> None:
    request = parse(["nano"])
    assert request.config == nano()
    assert not request.dry_run


def test_fields_by_path() -> None:
    request = parse(
        "nano --model.num-layers 6 --optim.qk-clip.threshold 30 --data.paths a b --data.no-stdlib "
        "--out runs/x --schedule.kind cosine --time-limit-s None --dry-run".split()
    )
    config = request.config
    assert config.model == nano().model.replace(num_layers=6)
    assert config.optim.qk_clip.threshold == 30
    assert config.data.paths == (Path("a"), Path("b"))
    assert config.data.stdlib is False
    assert config.out == Path("runs/x")
    assert config.time_limit_s is None
    assert request.dry_run
    assert type(config) is type(nano())


def test_length_in_the_other_unit_replaces_the_recipes() -> None:
    config = parse(["nano", "--tokens", "1000000"]).config
    assert (config.tokens, config.steps) == (1_000_000, None)
    config = parse(["kimi-k2", "--steps=1000"]).config
    assert (config.tokens, config.steps) == (None, 1000)


def test_help_of_train_lists_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in RECIPES)
    assert "1.03 T parameters, 32.9 B active" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nnano"], "no recipe is named 'nnano'; did you mean 'nano'?; the recipes are nano, tiny"),
        (["--steps", "3"], "chogori train begins with a recipe, found --steps; expected one of nano"),
        (["--from"], "--from names no run"),
        (["--from", "--out", "x"], "--from names no run"),
    ],
)
def test_what_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.pths", "x"], "--data.paths"),
        (["--model.num-experts-per-token", "100"], "model.num_experts_per_token is 100"),
        (["--batch-size", "0"], "batch_size is 0; expected at least 1"),
        (["--precision", "bf16"], "'bfloat16'"),
        (["--steps", "many"], "--steps"),
    ],
)
def test_fields_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "nano", *arguments])
    assert message in capsys.readouterr().err


def test_from_replays_into_another_folder(tmp_path: Path) -> None:
    source = write_run(tmp_path / "first", seed=7)
    request = parse(["--from", str(source), "--out", str(tmp_path / "second"), "--steps", "40"])
    assert request.config == tiny().replace(seed=7, out=tmp_path / "second", steps=40)


def test_from_without_a_new_folder(tmp_path: Path) -> None:
    source = write_run(tmp_path / "first")
    with pytest.raises(ConfigError, match=f"say where, such as --out {source}-again"):
        parse(["--from", str(source)])


def test_from_something_else(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not the folder of a training run: it has no config\.json"):
        parse(["--from", str(tmp_path), "--out", "x"])


def test_changed_config_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_run(tmp_path / "run")
    assert main(["train", "tiny", "--out", str(source), "--seed", "1", "--model.num-layers", "2"]) == 1
    message = capsys.readouterr().err
    assert "model.num_layers was 3 and is now 2; seed was 0 and is now 1" in message
    assert "Give the same values to continue it" in message


def test_plan_of_kimi_k2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chogori.train.machine.measure_matrix_peak", lambda dtype, device: 1e12)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["train", "kimi-k2", "--device", "cpu", "--dry-run"]) == 0
    rows = {line[:20].strip(): " ".join(line[20:].split()) for line in capsys.readouterr().out.splitlines()}
    assert rows["parameters, total"] == "1.03 T 1,026,408,209,408"
    assert rows["parameters, active"] == "32.9 B 32,861,477,888 per token"
    # Batches of 67 M tokens (technical report, §2.5).
    assert rows["steps"] == "230,968 of 67,108,864 tokens"
    assert rows["tokens"] == "15.5 T all steps"
    assert rows["matrix peak"].startswith("1 TFLOP/s measured")
    # 3,185 Z over the assumed share of 1 TFLOP/s, in years of 31.6 M seconds.
    assumed = re.search(r"assuming (\d+)% of that peak$", rows["expected"])
    assert assumed is not None
    share = int(assumed[1]) / 100
    assert share in plan.ASSUMED_UTILISATION.values()
    years = float(rows["expected"].split()[0].replace(",", ""))
    assert years == pytest.approx(3.185e24 / (share * 1e12) / (365.25 * 86400), rel=1e-3)


def test_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chogori.train.machine.measure_matrix_peak", lambda dtype, device: 1e12)
    assert main(["train", "tiny", "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_interrupt_before_the_first_step(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chogori.train.launch.train", interrupted)
    assert main(["train", "tiny"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues\n"


class TestRealRun:
    """The program itself, as a shell starts it."""

    @pytest.fixture
    def corpus(self, tmp_path: Path) -> Path:
        folder = tmp_path / "corpus"
        folder.mkdir()
        for number in range(40):
            lines = [f"def function_{number}_{line}(argument):\n    return argument + {line}\n" for line in range(40)]
            (folder / f"module_{number}.py").write_text("\n".join(lines), encoding="utf-8")
        return folder

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "chogori", *arguments]

    def train_arguments(self, corpus: Path, out: Path) -> list[str]:
        # near-duplicates 1: the generated modules are meant to be alike.
        fields = f"--data.no-stdlib --data.near-duplicates 1 --data.heldout-share 0.2 --data.paths {corpus}"
        return ["train", "tiny", "--out", str(out), *fields.split()]

    def test_train_sample_report_again(
        self, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
        out = tmp_path / "run"

        def call(*arguments: str) -> str:
            assert main(arguments) == 0
            shown = capfd.readouterr()
            assert shown.err == ""
            return shown.out

        assert "bits per byte" in call(*self.train_arguments(corpus, out))
        assert RunFolder(out).is_complete
        finished = {path: path.stat().st_mtime_ns for path in (out / "model").iterdir()}

        assert "step 30/30" not in call(*self.train_arguments(corpus, out))
        assert {path: path.stat().st_mtime_ns for path in (out / "model").iterdir()} == finished

        sample = ["sample", str(out), "--prompt", "def ", "--seed", "1", "--max-tokens", "20"]
        text = call(*sample)
        assert text.startswith("def ")
        assert len(text) > len("def \n\n")
        assert call(*sample) == text
        # Without a prompt and without a terminal: the prompts of the config, then the end.
        assert call("sample", str(out), "--max-tokens", "5").startswith("def ")

        (out / "report.html").unlink()
        assert call("report", str(out)) == f"{out / 'report.html'}\n"
        assert (out / "report.html").is_file()

    def test_ctrl_c_says_how_to_continue(self, corpus: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        arguments = [*self.train_arguments(corpus, out), "--steps", "100000"]
        with subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("step "):
                    process.send_signal(signal.SIGINT)
                    break
            rest, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert errors == ""
        assert "same command" in rest
        assert not RunFolder(out).is_complete
        assert any((out / "checkpoints").iterdir())
