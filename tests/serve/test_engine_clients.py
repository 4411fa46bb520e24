"""The real engine behind clients that leave, more of them than it takes, and a server that stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from chogori.cli.local_model import LocalBackend
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import eventually, is_idle, local_backend, ready

LONG = 4_000
"""Tokens of an answer that no test waits for: some twenty seconds."""
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me everything. " * 20}]
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": LONG, "ignore_eos": True}
TEXT: dict[str, Any] = {"prompt": ["Once", "Twice"], "max_tokens": LONG, "ignore_eos": True}
WITHOUT_END: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string", "minLength": 3_000}}}
TOOL: dict[str, Any] = {"name": "write", "input_schema": {**WITHOUT_END, "required": ["text"]}}
MESSAGE: dict[str, Any] = {
    "model": "tiny",
    "messages": MESSAGES,
    "max_tokens": LONG,
    "tools": [TOOL],
    "tool_choice": {"type": "any"},
}
RESPONSE: dict[str, Any] = {
    "input": MESSAGES,
    "max_output_tokens": LONG,
    "tools": [{"type": "function", "name": "write", "parameters": TOOL["input_schema"]}],
    "tool_choice": "required",
}
LEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat, three choices": ("/v1/chat/completions", {**CHAT, "n": 3}),
    "two texts": ("/v1/completions", TEXT),
    "response": ("/v1/responses", RESPONSE),
    "message": ("/anthropic/v1/messages", MESSAGE),
}


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    return local_backend(max_running=3, max_waiting=1)


@pytest.fixture(scope="module")
def server(serve_for_module: Serve, backend: LocalBackend) -> LiveServer:
    return ready(serve_for_module(backend))


def works(server: LiveServer) -> bool:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "max_tokens": 2}, timeout=60)
    return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(("path", "body"), LEFT.values(), ids=LEFT)
def test_a_client_that_leaves_its_stream_frees_what_it_held(
    server: LiveServer, backend: LocalBackend, path: str, body: dict[str, Any]
) -> None:
    with httpx.stream("POST", server.url + path, json={**body, "stream": True}, timeout=60) as response:
        assert response.status_code == 200
        pieces = response.iter_raw()
        for _ in range(5):
            next(pieces)
        assert backend.gauges().cache_tokens_used >= LONG
    eventually(lambda: is_idle(backend))
    assert works(server)


@pytest.mark.parametrize(("path", "body"), LEFT.values(), ids=LEFT)
def test_a_client_that_does_not_wait_for_its_answer_frees_what_it_held(
    server: LiveServer, backend: LocalBackend, path: str, body: dict[str, Any]
) -> None:
    async def leave() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            waiting = asyncio.create_task(client.post(server.url + path, json=body))
            await asyncio.to_thread(eventually, lambda: backend.gauges().cache_tokens_used >= LONG)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(leave())
    eventually(lambda: is_idle(backend))
    assert works(server)


def test_others_go_on_when_a_client_leaves(server: LiveServer, backend: LocalBackend) -> None:
    """Two thirds of the cache's holders leave; the third's answer is the one it would have been."""
    body = {**CHAT, "max_tokens": 40, "seed": 5}
    alone = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()

    async def in_company() -> Any:
        async with httpx.AsyncClient(timeout=60) as client:
            async with streaming(client, server, CHAT), streaming(client, server, CHAT):
                staying = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=body))
                await asyncio.to_thread(eventually, lambda: backend.gauges().running == 3)
            return (await staying).json()

    assert asyncio.run(in_company())["choices"] == alone["choices"]
    eventually(lambda: is_idle(backend))


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, server: LiveServer, body: dict[str, Any]) -> AsyncGenerator[None]:
    """A stream that has begun, and is left at the end of the block."""
    url = f"{server.url}/v1/chat/completions"
    async with client.stream("POST", url, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        pieces = response.aiter_raw()  # held: the response is closed with it
        await anext(pieces)
        yield


def test_a_full_queue_refuses_and_takes_again(server: LiveServer, backend: LocalBackend) -> None:
    """Three answers run and one waits; whoever comes then is told when to come again. The one that waits leaves too."""

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client, streaming(client, server, {**CHAT, "n": 3}):
            waiting = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=CHAT))
            await asyncio.to_thread(eventually, lambda: backend.gauges().waiting == 1)
            refused = [
                await client.post(server.url + path, json={**body, "stream": stream})
                for path, body in LEFT.values()
                for stream in (False, True)
            ]
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await asyncio.to_thread(eventually, lambda: backend.gauges().waiting == 0)
            assert backend.gauges().running == 3
            return refused

    refused = asyncio.run(crowd())
    assert [response.status_code for response in refused] == [429] * 8 + [529] * 2
    for response in refused:
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["content-type"] == "application/json"
        error = response.json()["error"]
        assert "4 answers run or wait" in error["message"]
        overloaded = error["type"] if response.status_code == 529 else error["code"]
        assert overloaded == ("overloaded_error" if response.status_code == 529 else "engine_overloaded")
    eventually(lambda: is_idle(backend))
    assert works(server)


def test_choices_for_which_the_queue_has_no_room_fail_the_whole_answer(
    server: LiveServer, backend: LocalBackend
) -> None:
    """The first choice is taken, the fifth is not: the answer is refused whole, and what was begun is freed."""
    crowded = {**CHAT, "n": 5}
    whole = httpx.post(f"{server.url}/v1/chat/completions", json=crowded, timeout=60)
    assert (whole.status_code, whole.json()["error"]["code"]) == (429, "engine_overloaded")
    eventually(lambda: is_idle(backend))
    streamed = httpx.post(f"{server.url}/v1/chat/completions", json={**crowded, "stream": True}, timeout=60)
    assert "engine_overloaded" in streamed.text
    eventually(lambda: is_idle(backend))
    assert works(server)


@pytest.mark.parametrize("drain_timeout_s", [60, 0], ids=["in time", "too late"])
def test_a_stopping_server_lets_streams_end_or_cancels_them(serve: Serve, drain_timeout_s: float) -> None:
    backend = local_backend()
    server = ready(serve(backend, drain_timeout_s=drain_timeout_s))
    num_tokens = 200 if drain_timeout_s else LONG
    texts: list[str] = []

    def read() -> None:
        body = {**CHAT, "max_tokens": num_tokens, "stream": True}
        try:
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
                texts.append("".join(response.iter_text()))
        except httpx.TransportError:
            texts.append("broken off")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    eventually(lambda: backend.gauges().running == 3)
    server.begin_to_stop()
    for reader in readers:
        reader.join(60)
    server.join()
    assert is_idle(backend)
    if drain_timeout_s:
        assert [text.endswith("data: [DONE]\n\n") for text in texts] == [True] * 3
    else:
        assert texts == ["broken off"] * 3
