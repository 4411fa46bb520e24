"""`chogori serve` as a process: what it prints, what it refuses, how it ends."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from chogori.cli.main import main
from chogori.cli.serve import parse
from chogori.cli.server_session import curl_line

COMMAND = [sys.executable, "-m", "chogori", "serve", "--model", "tiny:random"]


def test_one_request_of_a_client_is_answered_and_shown(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "--port", "0", "--once", "--data-dir", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "tiny is served at http://127.0.0.1:" in result.stdout
    assert "curl http://127.0.0.1:" in result.stdout
    assert "HTTP 200" in result.stdout
    assert '"object": "chat.completion"' in result.stdout
    assert result.stderr == ""


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [*COMMAND, "--port", "0", "--data-dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[4].rstrip(",")
        with httpx.Client(base_url=address, trust_env=False) as client:
            assert client.get("/ready").status_code == 200
            assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=30)
    finally:
        process.kill()
    assert complaints == ""
    assert process.returncode in (0, -signal.SIGINT)


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["serve", "--model", "tiny:random", "--port", str(port), "--data-dir", str(tmp_path)]
        assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"127.0.0.1, port {port}, cannot be listened at: Address already in use; name another port" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "runs/none"], "there is no such folder"),
        (["--model", "tiny:random", "--context-length", "1"], "context_length is 1; expected at least 2"),
        (["--model", "tiny:random", "--port", "70000"], "serve.port is 70000; expected 0 to 65535"),
        (["--model", "tiny:random", "--engine.block-tokens", "7"], "expected a multiple of engine.block_tokens = 7"),
        (["--model", "tiny:random", "--backend.model", "k"], "backend is for a server at an address; model is 'tiny:"),
        (["--model", "tiny:random", "--repair.max-rounds", "3"], "repair is for a server at an address"),
        (["--model", "http://127.0.0.1:9/v1", "--engine.cache-tokens", "64"], "engine is for a model on this machine"),
        (["--model", "http://"], "expected an address such as"),
        (["--model", "http://a:key@b/v1"], "base_url holds a name or password"),
        (["--model", "http://127.0.0.1:9/v1", "--backend.api-key-env", "UNSET_KEY"], "UNSET_KEY, which is not set"),
        (["--model", "http://127.0.0.1:9/v1", "--backend.max-running", "0"], "backend.max_running is 0; expected at"),
        (["--model", "tiny:random", "--tools.max-sent", "0"], "tools.max_sent is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["serve", *arguments])
    except SystemExit as left:  # tyro prints what a nested record refuses, and leaves
        status = left.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_curl_line_is_one_line_of_valid_json() -> None:
    line = curl_line("http://127.0.0.1:8000", "nano")
    assert line.startswith("curl http://127.0.0.1:8000/v1/chat/completions ")
    assert line.endswith("}'")
    assert parse(["--model", "nano:random"]).settings.host == "127.0.0.1"
