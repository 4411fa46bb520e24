"""What `chogori sample` refuses before it loads a model, and its prompt line with a scripted model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chogori.cli import sample
from chogori.cli.main import main
from chogori.cli.sample import SampleArguments
from chogori.errors import ConfigError


class ScriptedSampler:
    """Stands in for the model: repeats the prompt in capitals, piece by piece; refuses "long"."""

    def stream(self, prompt: str, **options: object) -> Iterator[str]:
        if prompt == "long":
            raise ConfigError("the prompt has 9 tokens, and the model reads at most 4")
        yield from prompt.upper()


def converse(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(typed)

    def scripted_input(mark: str) -> str:
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", scripted_input)
    sample._converse(ScriptedSampler(), SampleArguments(run=Path("runs/x")))  # pyright: ignore[reportArgumentType]


def test_prompt_line_continues_each_line_until_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    converse(["abc", "[red]"], monkeypatch)
    shown = capsys.readouterr().out
    assert "abcABC\n" in shown
    assert "[red][RED]\n" in shown


def test_empty_line_ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    converse(["", "abc"], monkeypatch)
    assert "ABC" not in capsys.readouterr().out


def test_refused_prompt_leaves_the_line_open(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    converse(["long", "abc"], monkeypatch)
    shown = capsys.readouterr().out
    assert "error: the prompt has 9 tokens" in shown
    assert "abcABC" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tokens", "0"], "max_tokens is 0; expected at least 1"),
        (["--temperature", "-1"], "temperature is -1.0; expected 0 or more"),
        (["--top-p", "0"], "top_p is 0.0; expected above 0 and at most 1"),
        (["--top-k", "0"], "top_k is 0; expected at least 1"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, ConfigError)) as stop:
        sample.parse(["runs/nano", *arguments])
    assert message in f"{capsys.readouterr().err}{stop.value}"


def test_run_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "runs/nowhere"]) == 1
    assert "runs/nowhere does not exist; expected the folder of a run" in capsys.readouterr().err
