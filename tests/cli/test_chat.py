"""`chogori chat`: one answer, a conversation, and an address instead of a model."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from chogori.chat.completer import ChatRequest, TextRequest
from chogori.chat.messages import Message
from chogori.chat.program import ProgramCompleter
from chogori.cli import chat
from chogori.cli.main import main
from chogori.errors import ConfigError, RequestError
from tests.serve.conftest import Serve, servers
from tests.serve.scripted_backend import ScriptedBackend


def echo(asked: ChatRequest | TextRequest) -> Message:
    """Says what was said, and how many messages it saw; refuses "refuse"."""
    assert isinstance(asked, ChatRequest)
    last = asked.messages[-1].content
    if last == "refuse":
        raise RequestError("I will not", field="messages")
    system = next((message.content for message in asked.messages if message.role == "system"), "none")
    return Message(role="assistant", content=f"{last}|{len(asked.messages)}|{system}")


@pytest.fixture
def converse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`converse(*typed)` types lines at the prompt and returns what was shown."""

    def run(*typed: str, system: str | None = None) -> str:
        lines = iter(typed)

        def scripted_input(mark: str) -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", scripted_input)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        options = chat.parse(["--system", system] if system else [])
        assert asyncio.run(chat._converse(options, ProgramCompleter(echo))) == 0
        return capsys.readouterr().out

    return run


def test_a_conversation_remembers_and_begins_anew(converse: Callable[..., str]) -> None:
    shown = converse("one", "two", "/new", "three", "/system Be kind", "four", "/quit", "five")
    assert "one|1|none\n" in shown
    assert "two|3|none\n" in shown
    assert "three|1|none\n" in shown
    assert "four|2|Be kind\n" in shown
    assert "five" not in shown


def test_a_refused_message_is_not_part_of_the_conversation(converse: Callable[..., str]) -> None:
    shown = converse("refuse", "", "after", "/what", system="Be brief")
    assert "error: I will not" in shown
    assert "after|2|Be brief" in shown
    assert "/what is no command" in shown


def test_an_address_answers_like_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start: Serve
    for start in servers(tmp_path):
        server = start(ScriptedBackend.saying("Good day"))
        assert main(["chat", "--model", f"{server.url}/v1", "--prompt", "Hello"]) == 0
        assert capsys.readouterr().out == "Good day\n"
        assert main(["chat", "--model", f"{server.url}/v1", "--name", "other", "--prompt", "Hello"]) == 1
        assert "'other' does not exist here" in capsys.readouterr().err.replace("\n", " ")


def test_an_address_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model", "http://127.0.0.1:9/v1", "--prompt", "x"]) == 1
    assert "http://127.0.0.1:9/v1/models lists no models" in capsys.readouterr().err.replace("\n", " ")


def test_random_weights_answer_a_piped_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chat", "--model", "tiny:random", "--prompt", "Hello", "--max-tokens", "5", "--seed", "1"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out == first


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="temperature is 3"):
        chat.parse(["--temperature", "3"])
    with pytest.raises(ConfigError, match="name is for an address"):
        chat.main(["--model", "tiny:random", "--name", "x"])
