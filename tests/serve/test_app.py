"""The server around the APIs, over a real socket: readiness, ids, limits, clients that leave, stopping."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from chogori.errors import BackendError
from chogori.serve.app import create_app
from chogori.serve.http_server import run
from chogori.serve.settings import ServeSettings
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import Reply, ScriptedBackend, ScriptedCompleter

QUESTION = {"model": "kimi-test", "messages": [{"role": "user", "content": "Hello"}]}


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


class Gate:
    """Holds a scripted answer before each of its pieces, until it is opened from the test's thread."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.num_waiting = 0

    async def __call__(self) -> None:
        self.num_waiting += 1
        await self.event.wait()


def held_backend(*pieces: str) -> tuple[ScriptedBackend, Gate]:
    gate = Gate()
    return ScriptedBackend(ScriptedCompleter(lambda _: Reply(pieces=pieces), pause=gate)), gate


def post(server: LiveServer, body: object, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=20)


def exchange(server: LiveServer, sent: bytes) -> bytes:
    """What a server answers to these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
            if b"\r\n\r\n" in received and b"connection: close" not in received.lower():
                break
        return received


# ---- life --------------------------------------------------------------------------------------------------------


def test_is_healthy_at_once_but_ready_only_when_the_backend_is(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    backend.started = asyncio.Event()
    completer = backend.completer
    del backend.completer  # the engine has none before its weights are read
    server = serve(backend)

    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    refused = httpx.get(f"{server.url}/ready"), post(server, QUESTION), post(server, {**QUESTION, "stream": True})
    assert [response.status_code for response in refused] == [503, 503, 503]
    assert refused[1].json()["error"]["code"] == "not_ready"
    assert refused[1].headers["retry-after"] == "1"

    backend.completer = completer
    server.in_loop(backend.started)
    eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 200)
    assert post(server, QUESTION).status_code == 200


def test_a_backend_that_cannot_start_ends_the_server(tmp_path: Path) -> None:
    backend = ScriptedBackend.saying("Hi")
    backend.start_error = RuntimeError("no weights")
    settings = ServeSettings(port=0, data_dir=tmp_path)
    with pytest.raises(BackendError, match="the model could not be started: no weights"):
        run(create_app(backend, settings), settings)
    assert backend.num_stopped == 1


def test_a_stopping_server_finishes_what_runs_and_takes_nothing_new(serve: Serve) -> None:
    backend, gate = held_backend("one", "two")
    server = serve(backend, drain_timeout_s=20)
    url = server.url
    answers: list[httpx.Response] = []
    client = threading.Thread(target=lambda: answers.append(post(server, {**QUESTION, "stream": True})))
    client.start()
    eventually(lambda: gate.num_waiting == 1)

    server.begin_to_stop()

    def refuses() -> bool:
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            return True
        return False

    eventually(refuses)
    server.in_loop(gate.event)
    client.join(20)
    server.join()
    assert answers[0].text.endswith("data: [DONE]\n\n")
    assert (backend.num_stopped, backend.running_when_stopped, backend.completer.num_cancelled) == (1, 0, 0)


def test_what_outlasts_the_drain_is_cancelled_before_the_backend_stops(serve: Serve) -> None:
    backend, gate = held_backend("never")
    server = serve(backend, drain_timeout_s=0)

    def ask() -> None:
        with pytest.raises(httpx.TransportError):
            post(server, {**QUESTION, "stream": True})

    client = threading.Thread(target=ask)
    client.start()
    eventually(lambda: gate.num_waiting == 1)
    server.begin_to_stop()
    server.join()
    client.join(20)
    assert (backend.num_stopped, backend.running_when_stopped, backend.completer.num_cancelled) == (1, 0, 1)


def test_sigterm_stops_the_process_cleanly(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from chogori.serve.app import create_app\n"
        "from chogori.serve.http_server import run\n"
        "from chogori.serve.settings import ServeSettings\n"
        "from tests.serve.scripted_backend import ScriptedBackend\n"
        "class Loud(ScriptedBackend):\n"
        "    async def start(self): print('started', flush=True)\n"
        "    async def stop(self): print('stopped', flush=True)\n"
        "settings = ServeSettings(port=0, data_dir=pathlib.Path(sys.argv[1]))\n"
        "run(create_app(Loud.saying('Hi'), settings), settings)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)
    assert rest == "stopped\n"
    assert process.returncode in (0, -signal.SIGTERM)  # uvicorn raises the signal again when it is done


# ---- clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request_at_once(serve: Serve, stream: bool) -> None:
    backend, gate = held_backend("never", "ends")
    server = serve(backend)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        list(client.chat.completions.create(**QUESTION, stream=stream))  # pyright: ignore
    assert gate.num_waiting == 1
    eventually(lambda: backend.completer.num_cancelled == 1)
    eventually(lambda: 'outcome="cancelled"} 1.0' in httpx.get(f"{server.url}/metrics").text)
    assert backend.completer.num_running == 0


def test_a_client_that_does_not_read_is_not_run_ahead_of_and_holds_up_nobody(serve: Serve) -> None:
    piece, num_pieces = "x" * 10_000, 5_000
    slow = Reply(pieces=[piece] * num_pieces)
    backend = ScriptedBackend(
        ScriptedCompleter(lambda asked: slow if "slow" in str(asked.messages) else Reply(pieces=["Hi"]))  # pyright: ignore
    )
    server = serve(backend)
    body = b'{"model": "kimi-test", "stream": true, "messages": [{"role": "user", "content": "slow"}]}'
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        eventually(lambda: backend.completer.num_events > 0)
        for _ in range(20):
            assert post(server, QUESTION).json()["choices"][0]["message"]["content"] == "Hi"
        # What the kernel's socket buffers take is bounded at some megabytes; all of it would be fifty.
        assert backend.completer.num_events < num_pieces / 2
        assert backend.completer.num_running == 1
    eventually(lambda: backend.completer.num_running == 0)
    assert backend.completer.num_cancelled == 1


# ---- what every response wears -----------------------------------------------------------------------------------


def test_every_response_has_an_id_and_the_clients_own_where_it_is_sane(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend)
    own = post(server, QUESTION, **{"x-request-id": "trace-42"})
    assert own.headers["x-request-id"] == "trace-42"
    assert backend.completer.asked[0].request_id == "trace-42"
    for insane in ("a b", "x" * 200, "<script>"):
        made = httpx.get(f"{server.url}/nothing", headers={"x-request-id": insane})
        assert made.headers["x-request-id"].startswith("req_")
        assert int(made.headers["openai-processing-ms"]) >= 0


def test_an_unforeseen_failure_is_a_500_that_tells_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ScriptedBackend.saying("Hi")

    def fail(_: object) -> int:
        raise RuntimeError("secret path")

    monkeypatch.setattr(backend, "count_tokens", fail)
    server = serve(backend)
    response = httpx.post(f"{server.url}/v1/tokenizers/estimate-token-count", json=QUESTION)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"].startswith("req_")
    assert post(server, QUESTION).status_code == 200


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:5173", True),
        ("http://127.0.0.1", True),
        ("https://chat.example", True),
        ("https://other.example", False),
        ("http://localhost.evil.example", False),
    ],
)
def test_pages_of_this_machine_and_configured_ones_may_call(serve: Serve, origin: str, allowed: bool) -> None:
    server = serve(ScriptedBackend.saying("Hi"), cors_origins=("https://chat.example",))
    preflight = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    asked = httpx.options(f"{server.url}/v1/chat/completions", headers=preflight)
    refused = httpx.get(f"{server.url}/nothing", headers={"origin": origin})
    for response in (asked, refused):
        assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert asked.status_code == (200 if allowed else 400)
    if allowed:
        assert "x-request-id" in refused.headers["access-control-expose-headers"].lower()


# ---- hostile requests --------------------------------------------------------------------------------------------


def test_routes_and_methods_that_do_not_exist(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    missing = httpx.get(f"{server.url}/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["message"]) == (404, "Invalid URL (GET /v1/nothing)")
    wrong = httpx.put(f"{server.url}/v1/chat/completions", json={})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "Not allowed to PUT on /v1/chat/completions"


def test_a_body_of_50_mb_is_refused_before_it_is_read(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + b"content-length: 50000000\r\n\r\n{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")

    def pieces() -> object:
        for _ in range(50):
            yield b" " * 1_000_000

    declared = httpx.post(f"{server.url}/v1/chat/completions", content=b" " * 50_000_000, timeout=20)
    chunked = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=pieces(),  # pyright: ignore[reportArgumentType]
        headers={"content-type": "application/json"},
        timeout=20,
    )
    for response in (declared, chunked):
        assert response.status_code == 413
        assert response.json()["error"]["message"] == "the body is larger than 32 MB; expected at most that"
    assert post(server, QUESTION).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\n" + b"".join(b"x-flood-%d: %s\r\n" % (i, b"y" * 1000) for i in range(100)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nx-long: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00 not http at all\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: minus one\r\n\r\n",
    ],
    ids=["many headers", "long header", "long path", "no HTTP", "no length"],
)
def test_floods_and_broken_http_are_answered_with_400_and_end_there(serve: Serve, sent: bytes) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    assert exchange(server, sent).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert post(server, QUESTION).status_code == 200


def test_importing_the_server_loads_nothing_heavy() -> None:
    program = "import sys, chogori.serve.app; print({'torch', 'transformers', 'jsonschema'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"
