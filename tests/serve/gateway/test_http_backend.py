"""The gateway before a real server that fails in every way: the right error in each API's shape, and life goes on."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from chogori.chat.completer import ChatRequest
from chogori.chat.language_samples import SAMPLES
from chogori.chat.messages import Message
from chogori.chat.template import render
from chogori.chat.tokenizer import Tokenizer
from chogori.errors import BackendError, BackendTimeoutError, ConfigError
from chogori.serve.gateway.config import HttpBackendConfig
from chogori.serve.gateway.http_backend import HttpBackend
from tests.chat.misbehaving_server import Behaviour, chunk, die_after, events, reply, said, stream
from tests.serve.conftest import Serve
from tests.serve.gateway.program_server import ProgramServer
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import ready

KEY = "sk-behind-0123456789"
HELLO: dict[str, Any] = {"model": "kimi-k2", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}
CONFIG = HttpBackendConfig(max_retries=1)
IMPATIENT = HttpBackendConfig(max_retries=1, first_token_timeout_s=0.3, between_tokens_timeout_s=0.3)
FIRST = events(chunk({"role": "assistant", "content": "Hel"}), done=False)


@pytest.fixture(scope="module")
def gateway(program_server: ProgramServer, serve_for_module: Serve) -> LiveServer:
    return ready(serve_for_module(HttpBackend(program_server.url, CONFIG)))


@pytest.fixture(scope="module")
def impatient_gateway(program_server: ProgramServer, serve_for_module: Serve) -> LiveServer:
    return ready(serve_for_module(HttpBackend(program_server.url, IMPATIENT)))


@pytest.fixture(autouse=True)
def _fresh(program_server: ProgramServer) -> None:
    program_server.reset(said("Hi"))


def openai_chat(gateway: LiveServer, *, streamed: bool) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", json={**HELLO, "stream": streamed}, trust_env=False)


def anthropic_chat(gateway: LiveServer, *, streamed: bool) -> httpx.Response:
    return httpx.post(f"{gateway.url}/anthropic/v1/messages", json={**HELLO, "stream": streamed}, trust_env=False)


def errors_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The error of an answer, whole or as the last of its stream."""
    if answer.headers["content-type"].startswith("application/json"):
        return [answer.json()]
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert "[DONE]" not in data
    return [json.loads(text) for text in data if "error" in json.loads(text)]


FAULTS: dict[str, tuple[Callable[[ProgramServer], Behaviour], int, int, bool]] = {
    # What it does, the status in OpenAI's API and in Anthropic's, whether an answer had begun.
    "dies before its answer": (lambda _: die_after(), 500, 500, False),
    "dies in mid-answer": (lambda _: die_after(FIRST), 500, 500, True),
    "ends in mid-answer": (lambda _: stream(FIRST), 500, 500, True),
    "answers garbage": (lambda _: reply("<html>nginx</html>"), 500, 500, False),
    "sends what is no JSON": (lambda _: stream(FIRST, b"data: {nothing\n\n"), 500, 500, True),
    "sends another kind of object": (lambda _: stream(b'data: {"choices": 3}\n\n'), 500, 500, False),
    "fails": (lambda _: reply({"error": {"message": "CUDA out of memory"}}, 500), 502, 502, False),
    "fails in the stream": (
        lambda _: stream(FIRST, b'data: {"error": {"message": "worker died", "code": 500}}\n\n'),
        502,
        502,
        True,
    ),
    "is overloaded": (
        lambda _: reply({"error": {"message": "slow down"}}, 429, {"retry-after": "90"}),
        429,
        529,
        False,
    ),
    "has no quota left": (
        lambda _: reply({"error": {"message": "no money", "type": "exceeded_current_quota_error"}}, 429),
        502,
        502,
        False,
    ),
    "hangs": (lambda server: server.hang(), 504, 504, False),
    "hangs in mid-answer": (lambda server: server.hang(FIRST), 504, 504, True),
    "finds the prompt too long": (
        lambda _: reply({"error": {"message": "This model's maximum context length is 8 tokens"}}, 400),
        400,
        400,
        False,
    ),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_the_right_error_and_the_next_request_works(
    program_server: ProgramServer, gateway: LiveServer, impatient_gateway: LiveServer, fault: str, streamed: bool
) -> None:
    asked = impatient_gateway if fault.startswith("hangs") else gateway
    behaviour, openai_status, anthropic_status, has_begun = FAULTS[fault]
    for ask, status in ((openai_chat, openai_status), (anthropic_chat, anthropic_status)):
        program_server.reset(behaviour(program_server))
        answer = ask(asked, streamed=streamed)
        (error,) = errors_of(answer)
        if has_begun and streamed:
            assert answer.status_code == 200
            assert "Hel" in answer.text
        else:
            assert answer.status_code == status
        if ask is openai_chat:
            assert set(error) == {"error"}
            assert error["error"]["message"]
        else:
            assert error["type"] == "error"
            assert error["error"]["type"] in (
                "api_error", "rate_limit_error", "overloaded_error", "timeout_error", "invalid_request_error",
            )  # fmt: skip
        assert len(program_server.bodies) <= 2
        assert len(program_server.bodies) == 1 or not has_begun, "asked again after something had been sent"

        program_server.reset(said("Hi again"))
        after = ask(gateway, streamed=False)
        assert after.status_code == 200
        assert "Hi again" in after.text


def test_a_passing_fault_is_not_seen(program_server: ProgramServer, gateway: LiveServer) -> None:
    for fault in (die_after(), reply("busy", 503)):
        program_server.reset(fault, said("Here"))
        assert "Here" in openai_chat(gateway, streamed=True).text
        assert len(program_server.bodies) == 2


def test_a_client_that_leaves_ends_its_request_at_the_server(
    program_server: ProgramServer, gateway: LiveServer
) -> None:
    program_server.reset(program_server.hang(FIRST))
    with httpx.stream(
        "POST", f"{gateway.url}/v1/chat/completions", json={**HELLO, "stream": True}, trust_env=False
    ) as answer:
        next(answer.iter_lines())
    assert program_server.disconnected.wait(5)


def test_models_behind_one_address_are_served_by_name(program_server: ProgramServer, fresh_serve: Serve) -> None:
    program_server.models = {"data": [{"id": "a", "max_model_len": 10}, {"id": "b/c"}]}
    gateway = ready(fresh_serve(HttpBackend(program_server.url, HttpBackendConfig(), context_length=77)))
    with httpx.Client(base_url=gateway.url, trust_env=False) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(model["id"], model["context_length"]) for model in listed] == [("a", 10), ("b/c", 77)]
        for name, asked in (("a", "a"), ("b/c", "b/c"), (None, "a")):
            body = {"messages": HELLO["messages"]} | ({"model": name} if name else {})
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            assert program_server.bodies[-1]["model"] == asked
        assert client.post("/v1/chat/completions", json={**HELLO, "model": "kimi-k2"}).status_code == 404


def test_the_gateway_is_ready_when_its_server_is(program_server: ProgramServer, fresh_serve: Serve) -> None:
    program_server.models_status = 503
    gateway = fresh_serve(HttpBackend(program_server.url, HttpBackendConfig()))
    with httpx.Client(base_url=gateway.url, trust_env=False) as client:
        assert client.get("/ready").status_code == 503
        assert client.post("/v1/chat/completions", json={"messages": HELLO["messages"]}).status_code == 503
        assert client.get("/v1/models").status_code == 503
        program_server.models_status = 200
        ready(gateway)
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 200


@pytest.mark.parametrize(
    ("models", "status", "config", "message"),
    [
        ({"error": {"message": "bad key " + KEY}}, 401, {}, r"answered 401: bad key \[api key\]; name the variable"),
        ("not found", 404, {}, "commonly ends in /v1"),
        ("<html>", 200, {}, "did not answer in JSON"),
        ({"data": []}, 200, {}, "list of models"),
        ({"data": [{"id": "a"}]}, 200, {"model": "b"}, "has no model 'b'; it lists a"),
        ("loading", 503, {"start_timeout_s": 0.01}, r"did not list its models in 0.01 s \(HTTP 503\)"),
    ],
)
def test_a_server_that_cannot_be_used_is_named(
    program_server: ProgramServer, monkeypatch: pytest.MonkeyPatch, models: object, status: int, config: dict[str, Any],
    message: str,
) -> None:  # fmt: skip
    program_server.models, program_server.models_status = models, status
    monkeypatch.setenv("BEHIND_KEY", KEY)
    backend = HttpBackend(program_server.url, HttpBackendConfig(api_key_env="BEHIND_KEY", **config))

    async def start() -> None:
        try:
            await backend.start()
        finally:
            await backend.stop()

    with pytest.raises((BackendError, BackendTimeoutError), match=message) as raised:
        asyncio.run(start())
    assert KEY not in str(raised.value)


def test_the_key_comes_from_the_environment_and_is_in_no_word(
    program_server: ProgramServer, monkeypatch: pytest.MonkeyPatch, fresh_serve: Serve
) -> None:
    with pytest.raises(ConfigError, match="names BEHIND_KEY, which is not set"):
        HttpBackend(program_server.url, HttpBackendConfig(api_key_env="BEHIND_KEY"))
    monkeypatch.setenv("BEHIND_KEY", KEY)
    backend = HttpBackend(program_server.url, HttpBackendConfig(api_key_env="BEHIND_KEY", max_retries=0))
    gateway = ready(fresh_serve(backend))
    program_server.reset(reply({"error": {"message": f"wrong key {KEY}"}}, 401))
    answer = openai_chat(gateway, streamed=False)
    assert answer.status_code == 502
    assert KEY not in answer.text + repr(backend)
    assert "[api key]" in answer.text
    assert program_server.headers[-1]["authorization"] == f"Bearer {KEY}"


def test_prompts_are_counted_by_whoever_knows(program_server: ProgramServer, tmp_path: Path) -> None:
    asked = ChatRequest(messages=[Message(role="user", content="How high is K2?")])
    tokenizer = Tokenizer.train(SAMPLES.values(), vocab_size=400)
    tokenizer.save(tmp_path)

    async def count(config: HttpBackendConfig) -> int:
        backend = HttpBackend(program_server.url, config)
        await backend.start()
        try:
            return await asyncio.to_thread(backend.count_tokens, asked)
        finally:
            await backend.stop()

    exact = len(render(asked.messages, tokenizer=tokenizer, add_generation_prompt=True).ids)
    assert asyncio.run(count(HttpBackendConfig(tokenizer=tmp_path))) == exact
    assert asyncio.run(count(HttpBackendConfig())) == 4  # fifteen bytes
    program_server.counted_tokens = 31
    assert asyncio.run(count(HttpBackendConfig())) == 31


def test_requests_are_gauged(program_server: ProgramServer, impatient_gateway: LiveServer) -> None:
    program_server.reset(program_server.hang(FIRST))
    gauges = impatient_gateway.app.state.backend.gauges
    asking = threading.Thread(target=openai_chat, args=(impatient_gateway,), kwargs={"streamed": False})
    asking.start()
    seen = set[int]()
    while asking.is_alive():
        seen.add(gauges().running)
        time.sleep(0.005)
    assert 1 in seen
    assert gauges().running == 0


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys; from chogori.cli.serve import parse, _remote; from chogori.cli import server_session;"
        "_remote(parse(['--model', 'http://127.0.0.1:9/v1'])); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
