"""Context caches in front of a model that runs elsewhere: replayed, metered, and named to servers that know names."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from chogori.chat.completer import ChatRequest, complete
from chogori.chat.http_completer import HttpCompleter
from chogori.chat.messages import Message
from chogori.serve.gateway.config import HttpBackendConfig
from chogori.serve.gateway.http_backend import HttpBackend
from tests.serve.caching.caching_client import ASKING, SYSTEM, TOOL, Caches
from tests.serve.conftest import Serve
from tests.serve.local_engine import ready
from tests.serve.scripted_backend import ScriptedBackend


def test_the_prefix_is_sent_in_front_and_its_tokens_are_metered_apart(serve: Serve) -> None:
    upstream = ScriptedBackend.saying("At ", "six.", prompt_tokens=200, cached_tokens=0)
    behind = serve(upstream)
    with Caches(ready(serve(HttpBackend(f"{behind.url}/v1", HttpBackendConfig())))) as caches:
        cache = caches.make(tools=[TOOL])
        assert not upstream.completer.asked, "nothing is sent ahead"
        messages = [{"role": "cache", "content": f"cache_id={cache['id']}"}, ASKING]
        used = caches.http.post("/chat/completions", json={"messages": messages})
        asked = upstream.completer.asked[0]
        assert isinstance(asked, ChatRequest)
        assert [message.content for message in asked.messages] == [SYSTEM["content"], ASKING["content"]]
        assert used.json()["usage"]["cached_tokens"] == cache["tokens"]
        assert used.headers["msh-context-cache-token-saved"] == str(cache["tokens"])
        assert len(caches.rows("cache_call")) == len(caches.rows("cache_storage")) == 1


def test_a_server_that_knows_cache_keys_is_told_the_caches() -> None:
    bodies: list[dict[str, Any]] = []

    async def scenario(*, told: bool) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            bodies.append(json.loads(request.content))
            chunk = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
            return httpx.Response(
                200,
                headers={"content-type": "text/event-stream"},
                text=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n",
            )

        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            completer = HttpCompleter("http://elsewhere/v1", "m", sends_cache_key=told, client=client)
            request = ChatRequest(messages=[Message(role="user", content="Hi")], cache_key="cache-1")
            await complete(completer, request)

    asyncio.run(scenario(told=True))
    asyncio.run(scenario(told=False))
    assert [body.get("prompt_cache_key") for body in bodies] == ["cache-1", None]
