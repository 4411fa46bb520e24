"""The gateway before Chogori's own server over the real engine, and before one that offers completions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from chogori.chat.language_samples import SAMPLES
from chogori.chat.tokenizer import Tokenizer
from chogori.serve.gateway.config import HttpBackendConfig
from chogori.serve.gateway.http_backend import HttpBackend
from tests.chat.misbehaving_server import Behaviour, chunk, events, stream, usage
from tests.serve.conftest import Serve
from tests.serve.gateway.program_server import Body, ProgramServer
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import local_backend, ready

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Skardu", "東京"]}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("climb", "log")]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "How high is K2?"}], "max_tokens": 60, "seed": 7}
ASKED: dict[str, dict[str, Any]] = {
    "text": {},
    "required calls": {"tools": TOOLS, "tool_choice": "required"},
    "named, three choices": {"tools": TOOLS, "n": 3, "tool_choice": {"type": "function", "function": {"name": "log"}}},
    "calls or not": {"tools": TOOLS, "temperature": 1.5},
    "log-probabilities": {"logprobs": True, "top_logprobs": 2, "tools": TOOLS},
    "continued": {"messages": [*CHAT["messages"], {"role": "assistant", "content": "It is", "partial": True}]},
    "cut": {"max_tokens": 1},
}


@pytest.fixture(scope="module")
def engine_server(serve_for_module: Serve) -> LiveServer:
    return ready(serve_for_module(local_backend()))


@pytest.fixture(scope="module")
def gateway(engine_server: LiveServer, serve_for_module: Serve) -> LiveServer:
    return ready(serve_for_module(HttpBackend(f"{engine_server.url}/v1", HttpBackendConfig())))


@pytest.mark.parametrize("changes", ASKED.values(), ids=ASKED)
def test_the_gateway_answers_as_the_engine_does(
    engine_server: LiveServer, gateway: LiveServer, changes: dict[str, Any]
) -> None:
    """One seed, one answer, through the gateway too: nothing is altered, and nothing needs repair."""
    body = {**CHAT, **changes}
    direct, through = (
        httpx.post(f"{server.url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
        for server in (engine_server, gateway)
    )
    assert direct.status_code == through.status_code == 200
    assert through.json()["choices"] == direct.json()["choices"]
    assert through.json()["usage"]["completion_tokens"] == direct.json()["usage"]["completion_tokens"]
    assert "x-chogori-repairs" not in through.headers


def test_models_and_counts_are_the_engines(engine_server: LiveServer, gateway: LiveServer) -> None:
    for server in (engine_server, gateway):
        (model,) = httpx.get(f"{server.url}/v1/models", trust_env=False).json()["data"]
        assert (model["id"], model["owned_by"]) == ("tiny", "chogori")
    counts = [
        httpx.post(
            f"{server.url}/v1/tokenizers/estimate-token-count",
            json={"model": "tiny", "messages": CHAT["messages"], "tools": TOOLS},
            trust_env=False,
        ).json()["data"]["total_tokens"]
        for server in (engine_server, gateway)
    ]
    assert counts[0] == counts[1] > 0


def test_a_call_cut_off_goes_on_by_completions(
    program_server: ProgramServer, fresh_serve: Serve, tmp_path: Path
) -> None:
    """Over the wire: token ids of the conversation as the template renders it, up to where the call ended."""
    tokenizer = Tokenizer.train(SAMPLES.values(), vocab_size=400)
    tokenizer.save(tmp_path)
    begun, rest = '{"city": "Skar', 'du", "days": 3}'

    def answer(path: str, body: Body) -> Behaviour:
        if path == "/v1/completions":
            text = tokenizer.decode(body["prompt"])
            assert text.endswith(f"functions.climb:0<|tool_call_argument_begin|>{begun}")
            choice = {"index": 0, "text": rest, "finish_reason": None}
            return stream(
                events(
                    {"choices": [choice]}, {"choices": [{**choice, "text": "", "finish_reason": "stop"}]}, usage(7, 6)
                )
            )
        call = {"index": 0, "id": "functions.climb:0", "function": {"name": "climb", "arguments": begun}}
        return stream(events(chunk({"tool_calls": [call]}), chunk(finish="length"), usage(9, 5)))

    program_server.reset(stream())
    program_server.answer = answer
    gateway = ready(fresh_serve(HttpBackend(program_server.url, HttpBackendConfig(tokenizer=tmp_path))))
    told = httpx.post(f"{gateway.url}/v1/chat/completions", json={**CHAT, "tools": TOOLS}, trust_env=False)
    (choice,) = told.json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == begun + rest
    assert told.headers["x-chogori-repairs"] == "continued=1"
    counted = told.json()["usage"]
    assert (counted["prompt_tokens"], counted["completion_tokens"]) == (16, 11)


def test_a_gateway_that_never_started_stops(program_server: ProgramServer) -> None:
    asyncio.run(HttpBackend(program_server.url, HttpBackendConfig()).stop())
