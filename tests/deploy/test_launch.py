"""Starting a deployment for real: a stand-in for the engine on PATH, which is started with the engine's command line,
answers its health check and is stopped; and a gateway in front of it."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from chogori.deploy.formats.files import Deployment
from chogori.deploy.launch import LaunchSettings, Progress, Supervised, launch
from chogori.errors import ConfigError, DeploymentError
from tests.deploy import stand_in_engine
from tests.deploy.deployments import official, typed

PATIENCE_S = 30.0
"""Only a hang takes so long."""


class Bench:
    """A folder with the stand-in engine, two free ports, and what was started."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.record = folder, folder / "record.json"
        self.port, self.engine_port = free_port(), free_port()
        monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}/usr/bin:/bin")
        (folder / "bin").mkdir()

    def install(self, mode: str) -> None:
        """Put an engine called vllm on PATH."""
        script = self.folder / "bin" / "vllm"
        words = [sys.executable, stand_in_engine.__file__, str(self.record), mode]
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        script.chmod(0o755)

    def deployment(self) -> Deployment:
        ports = ("--port", str(self.port), "--engine-port", str(self.engine_port))
        return typed("moonlight-16b-a3b", "--gpus", "1", "--gpu", "h100", *ports)

    def launch(
        self, gateway: str, *, timeout_s: float = PATIENCE_S, on_ready: Callable[[], None] = lambda: None
    ) -> int:
        """With bash text in the place of the gateway."""
        settings = LaunchSettings(
            folder=self.folder / "run",
            start_timeout_s=timeout_s,
            stop_timeout_s=5,
            gateway_program=("bash", "-c", gateway, "gateway"),
        )
        self.progress: list[Progress] = []
        return launch(self.deployment(), settings, self.progress.append, on_ready)

    @property
    def started(self) -> dict[str, object]:
        return json.loads(self.record.read_text(encoding="utf-8"))

    def assert_nothing_is_left(self) -> None:
        """Neither the engine, whose port is free again, nor its worker."""
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.engine_port)) != 0
        eventually(lambda: not is_running(int(str(self.started["worker"]))))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def is_running(pid: int) -> bool:
    """Zombies, which wait for whoever adopted them, run no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_the_engine_is_started_by_its_command_and_the_gateway_by_ours(bench: Bench, tmp_path: Path) -> None:
    bench.install("serves")
    ready: list[bool] = []
    status = bench.launch(f'printf "%s\\n" "$@" > {tmp_path}/gateway; exit 7', on_ready=lambda: ready.append(True))
    assert status == 7
    assert ready == [True]
    words = bench.started["words"]
    assert isinstance(words, list)
    assert words[:6] == [
        "serve",
        "moonshotai/Moonlight-16B-A3B-Instruct",
        "--host",
        "127.0.0.1",
        "--port",
        str(bench.engine_port),
    ]
    assert words[-3:] == ["--enable-auto-tool-choice", "--tool-call-parser", "kimi_k2"]
    gateway = (tmp_path / "gateway").read_text().split()
    url = f"http://127.0.0.1:{bench.engine_port}/v1"
    listening = ["--host", "127.0.0.1", "--port", str(bench.port)]
    assert gateway == ["serve", "--model", url, "--context-length", "8192", *listening]
    log = (bench.folder / "run" / "engine.log").read_text()
    assert log.splitlines()[0] == "loading weights"
    assert log.count("GET /health") == 3, "refused twice, then answered"
    assert any("GET /health" in step.last_line for step in bench.progress)
    bench.assert_nothing_is_left()


def test_an_engine_that_dies_is_shown_with_its_last_words(bench: Bench) -> None:
    bench.install("dies")
    with pytest.raises(DeploymentError, match="the engine ended with status 3 before it answered") as caught:
        bench.launch("exit 0")
    assert str(caught.value).endswith("loading weights\ntorch.OutOfMemoryError: CUDA out of memory")
    bench.assert_nothing_is_left()


def test_an_engine_that_never_answers_is_given_up(bench: Bench) -> None:
    bench.install("never")
    with pytest.raises(DeploymentError, match=r"the engine did not answer http://.*/health within 1 s"):
        bench.launch("exit 0", timeout_s=1)
    assert bench.progress, "progress is reported while it is waited for"
    bench.assert_nothing_is_left()


def test_an_engine_that_dies_later_ends_the_gateway(bench: Bench, tmp_path: Path) -> None:
    bench.install("dies-later")
    url = f"http://127.0.0.1:{bench.engine_port}/v1/chat/completions"
    request = f"import urllib.request; urllib.request.urlopen(urllib.request.Request({url!r}, data=b'{{}}'))"
    gateway = f"echo $$ > {tmp_path}/pid; {sys.executable} -c {shlex.quote(request)} 2>/dev/null; exec sleep 600"
    with pytest.raises(DeploymentError, match=r"ended with status 4 while it served; .*(?s:.)*illegal memory access"):
        bench.launch(gateway)
    assert not is_running(int((tmp_path / "pid").read_text()))
    bench.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_both(bench: Bench, tmp_path: Path, number: signal.Signals) -> None:
    """The real command in a process of its own; the gateway is a stand-in that says when it is asked to stop."""
    bench.install("serves")
    script = f"""
import sys
from pathlib import Path
from chogori.deploy.launch import LaunchSettings, launch
from tests.deploy.deployments import typed
gateway = 'trap "echo stopped > {tmp_path}/stopped; exit" TERM; echo > {tmp_path}/started; while :; do sleep 0.05; done'
deployment = typed("moonlight-16b-a3b", "--gpus", "1", "--gpu", "h100", "--port", "{bench.port}",
                   "--engine-port", "{bench.engine_port}")
settings = LaunchSettings(folder=Path("{tmp_path}/run"), gateway_program=("bash", "-c", gateway, "gateway"))
sys.exit(launch(deployment, settings, lambda progress: None, lambda: None))
"""
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        eventually((tmp_path / "started").exists)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "stopped").read_text() == "stopped\n"
    bench.assert_nothing_is_left()


def test_the_real_gateway_answers_for_the_engine(bench: Bench, tmp_path: Path) -> None:
    """The command that people type, from the plan to an answer, until Ctrl-C."""
    bench.install("serves")
    words = ["deploy", "moonlight-16b-a3b", "--gpus", "1", "--gpu", "h100", "--launch", "--out", str(tmp_path / "run")]
    words += ["--port", str(bench.port), "--engine-port", str(bench.engine_port)]
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "chogori", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")},
        )
    body = {"model": "moonlight-16b-a3b", "messages": [{"role": "user", "content": "Who are you?"}]}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{bench.port}", trust_env=False) as client:
            eventually(lambda: is_ready(client) or process.poll() is not None)
            assert process.poll() is None, output.read_text()
            answer = client.post("/v1/chat/completions", json=body, timeout=PATIENCE_S).json()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert "choices" in answer, f"{answer}\n{output.read_text()}"
    assert answer["choices"][0]["message"]["content"] == "a stand-in"
    said = output.read_text()
    assert "its log is" in said
    assert "Traceback" not in said
    bench.assert_nothing_is_left()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").is_success
    except httpx.TransportError:
        return False


def test_what_does_not_stop_is_killed(tmp_path: Path) -> None:
    stubborn = Supervised(["bash", "-c", f'trap "" TERM; echo > {tmp_path}/on; while :; do sleep 0.05; done'], None)
    eventually((tmp_path / "on").exists)
    stubborn.stop(timeout_s=0.2)
    assert stubborn.status() == -signal.SIGKILL


def test_an_engine_that_is_not_installed_is_named_with_its_installation(bench: Bench) -> None:
    with pytest.raises(DeploymentError, match=r"vllm is not installed here: vllm is not on PATH.*: pip install vllm$"):
        bench.launch("exit 0")
    python = bench.folder / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    missing = typed("moonlight-16b-a3b", "--gpus", "1", "--gpu", "h100", "--engine", "sglang")
    with pytest.raises(DeploymentError, match=r"python has no module sglang.*: pip install sglang$"):
        launch(missing, LaunchSettings(folder=bench.folder), bench_progress, lambda: None)


def bench_progress(_progress: Progress) -> None:
    raise AssertionError("nothing is started")


def test_a_taken_port_is_not_taken_for_the_engine(bench: Bench) -> None:
    bench.install("serves")
    with (
        socket.create_server(("127.0.0.1", bench.engine_port)),
        pytest.raises(
            DeploymentError, match=f"port {bench.engine_port} is meant for the engine .* in use; name another"
        ),
    ):
        bench.launch("exit 0")
    assert not bench.record.exists()


def test_several_nodes_are_not_started_from_one() -> None:
    with pytest.raises(ConfigError, match="launch starts what fits one node, and this plan has 2"):
        launch(official(), LaunchSettings(folder=Path("unused")), bench_progress, lambda: None)
