"""`/v1/caching` and chat with caches over a socket: Moonshot's shapes, the official SDK, and what the ledger has."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from chogori.chat.completer import ChatRequest
from chogori.cli.local_model import LocalBackend, ModelName
from chogori.engine.config import EngineConfig
from chogori.errors import BackendError
from chogori.serve.accounts.key_secret import key_secret
from chogori.serve.accounts.keys import KeyStore
from chogori.serve.app import create_app
from chogori.serve.backend import ModelCard
from chogori.serve.caching.settings import CachingSettings
from chogori.serve.settings import ServeSettings
from tests.serve.caching.caching_client import ASKING, SYSTEM, TOOL, Caches
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import eventually, is_idle, local_backend, ready
from tests.serve.scripted_backend import Asked, Reply, ScriptedBackend


@pytest.fixture
def backend() -> ScriptedBackend:
    backend = ScriptedBackend.saying("At ", "six.")
    backend.completer.reply = lambda request: _counting(request, backend)
    return backend


def _counting(request: Asked, backend: ScriptedBackend) -> Reply:
    assert isinstance(request, ChatRequest)
    tokens = backend.count_tokens(request) + 5
    return Reply(pieces=("At ", "six."), prompt_tokens=tokens, cached_tokens=0)


def test_a_cache_is_shown_in_moonshots_shape(serve: Serve, backend: ScriptedBackend) -> None:
    with Caches(serve(backend)) as caches:
        before = int(time.time())
        made = caches.make(tools=[TOOL], name="Harbour", description="Hours", metadata={"biz_id": "7"}, tags=["docs"])
        assert made == {
            "id": made["id"],
            "object": "context-cache",
            "status": "ready",
            "created_at": made["created_at"],
            "expired_at": made["created_at"] + 600,
            "tokens": len(SYSTEM["content"]) // 4,
            "model": "kimi-test",
            "messages": [SYSTEM],
            "tools": [TOOL],
            "name": "Harbour",
            "description": "Hours",
            "metadata": {"biz_id": "7"},
            "tags": ["docs"],
            "error": None,
        }
        assert before <= made["created_at"] <= time.time()
        assert made["id"].startswith("cache-")


def test_a_first_message_stands_for_the_cache_and_its_tools(serve: Serve, backend: ScriptedBackend) -> None:
    with Caches(serve(backend)) as caches:
        cache = caches.make(tools=[TOOL])
        messages: Any = [{"role": "cache", "content": f"cache_id={cache['id']};reset_ttl=900"}, ASKING]
        raw = caches.sdk.chat.completions.with_raw_response.create(model="kimi-test", messages=messages)
        answer = raw.parse()
        assert answer.choices[0].message.content == "At six."
        asked = backend.completer.asked[-1]
        assert isinstance(asked, ChatRequest)
        assert [message.content for message in asked.messages] == [SYSTEM["content"], ASKING["content"]]
        assert [tool.name for tool in asked.tools] == ["open_gate"]
        assert raw.headers["msh-context-cache-id"] == cache["id"]
        assert raw.headers["msh-context-cache-token-saved"] == str(cache["tokens"])
        expires_at = caches.get(cache["id"])["expired_at"]
        assert raw.headers["msh-context-cache-token-exp"] == str(expires_at)
        assert abs(expires_at - time.time() - 900) < 30
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == cache["tokens"]
        request = caches.rows("request")[0]
        assert request["cached_tokens"] == cache["tokens"]
        assert request["prompt_tokens"] == answer.usage.prompt_tokens
        assert [(row["quantity"], row["request_id"]) for row in caches.rows("cache_call")] == [
            (1, raw.headers["x-request-id"])
        ]
        assert [row["quantity"] for row in caches.rows("cache_creation")] == [cache["tokens"]]
        assert [row["ref"] for row in caches.rows("cache_storage")] == [f"{cache['id']}:minute:0"]


def test_headers_name_a_cache_whose_messages_are_sent_again(serve: Serve, backend: ScriptedBackend) -> None:
    with Caches(serve(backend)) as caches:
        cache = caches.make()
        headers = {"X-Msh-Context-Cache": cache["id"], "X-Msh-Context-Cache-Reset-TTL": "300"}
        messages: Any = [SYSTEM, ASKING]
        stream = caches.sdk.chat.completions.with_raw_response.create(
            model="kimi-test",
            messages=messages,
            extra_headers=headers,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert stream.headers["msh-context-cache-id"] == cache["id"]
        chunks = list(stream.parse())
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens_details is not None
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == cache["tokens"]
        assert len(caches.rows("cache_call")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{**SYSTEM, "content": "Else."}, ASKING]},
        {"messages": [ASKING]},
        {"messages": [SYSTEM, ASKING], "tools": [TOOL]},
    ],
)
def test_a_conversation_that_begins_otherwise_is_a_plain_request(
    serve: Serve, backend: ScriptedBackend, change: dict[str, Any]
) -> None:
    with Caches(serve(backend)) as caches:
        cache = caches.make()
        answer = caches.http.post("/chat/completions", json=change, headers={"x-msh-context-cache": cache["id"]})
        assert answer.status_code == 200
        assert answer.json()["usage"]["cached_tokens"] == 0
        assert "msh-context-cache-id" not in answer.headers
        assert not caches.rows("cache_call")


def test_a_dry_run_says_whether_the_cache_would_be_hit_and_asks_nobody(serve: Serve, backend: ScriptedBackend) -> None:
    with Caches(serve(backend)) as caches:
        cache = caches.make()
        content = f"cache_id={cache['id']};dry_run=1"
        hit = caches.http.post("/chat/completions", json={"messages": [{"role": "cache", "content": content}, ASKING]})
        assert hit.headers["msh-context-cache-id"] == cache["id"]
        assert (hit.json()["choices"], hit.json()["usage"]["total_tokens"]) == ([], 0)
        headers = {"x-msh-context-cache": cache["id"], "x-msh-context-cache-dryrun": "1"}
        miss = caches.http.post("/chat/completions", json={"messages": [ASKING]}, headers=headers)
        assert miss.status_code == 200
        assert "msh-context-cache-id" not in miss.headers
        assert not backend.completer.asked
        assert not caches.rows("cache_call")
        assert not caches.rows("request")


def test_tags_are_made_moved_listed_used_and_deleted(serve: Serve, backend: ScriptedBackend) -> None:
    with Caches(serve(backend)) as caches:
        first, second = caches.make(), caches.make(messages=[SYSTEM, {"role": "user", "content": "More"}])
        made = caches.http.post("/caching/refs/tags", json={"tag": "docs", "cache_id": first["id"]})
        assert made.json() == {
            "tag": "docs",
            "cache_id": first["id"],
            "object": "cache_object.tag",
            "owned_by": "everyone",
            "created_at": made.json()["created_at"],
        }
        caches.http.post("/caching/refs/tags", json={"tag": "docs", "cache_id": second["id"]})
        assert caches.http.get("/caching/refs/tags/docs").json()["cache_id"] == second["id"]
        assert caches.http.get("/caching/refs/tags/docs/content").json()["id"] == second["id"]
        assert [tag["tag"] for tag in caches.http.get("/caching/refs/tags").json()["data"]] == ["docs"]
        messages = [{"role": "cache", "content": "tag=docs"}, ASKING]
        used = caches.http.post("/chat/completions", json={"messages": messages})
        assert used.headers["msh-context-cache-id"] == second["id"]
        gone = {"deleted": True, "object": "cache_object.tag.deleted", "tag": "docs"}
        assert [caches.http.delete("/caching/refs/tags/docs").json() for _ in range(2)] == [gone, gone]
        assert caches.http.get("/caching/refs/tags/docs").status_code == 404
        assert caches.http.post("/chat/completions", json={"messages": messages}).status_code == 404


def test_lists_renewals_and_deletions(serve: Serve, backend: ScriptedBackend) -> None:
    with Caches(serve(backend)) as caches:
        made = [caches.make(metadata={"n": str(i)}) for i in range(3)]
        listed = caches.http.get("/caching", params={"limit": 2, "metadata[n]": "1"}).json()
        assert [cache["id"] for cache in listed["data"]] == [made[1]["id"]]
        after = caches.http.get("/caching", params={"after": made[1]["id"], "order": "asc"}).json()
        assert [cache["id"] for cache in after["data"]] == [made[2]["id"]]
        path = f"/caching/{made[0]['id']}"
        changed = caches.http.put(path, json={"metadata": {"n": "9"}, "ttl": 3600}).json()
        assert (changed["metadata"], changed["status"]) == ({"n": "9"}, "ready")
        assert changed["expired_at"] > made[0]["expired_at"]
        deleted = caches.http.delete(path).json()
        assert deleted == {"deleted": True, "id": made[0]["id"], "object": "context_cache_object.deleted"}
        for method in ("GET", "DELETE"):
            refused = caches.http.request(method, path)
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "cache_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "cache", "content": "tag=a"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x", "partial": True}]}, "messages"),
        ({"messages": [SYSTEM], "ttl": 0}, "ttl"),
        ({"messages": [SYSTEM], "ttl": 3601}, "ttl"),
        ({"messages": [SYSTEM], "ttl": 5, "expired_at": 99}, "ttl"),
        ({"messages": [SYSTEM], "expired_at": 99}, "expired_at"),
        ({"messages": [SYSTEM], "tags": ["1st"]}, "tags[0]"),
        ({"messages": [SYSTEM], "metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"messages": [SYSTEM], "name": "a\0"}, "name"),
        ({"messages": [SYSTEM], "lifetime": 4}, "lifetime"),
    ],
)
def test_what_cannot_be_cached_is_refused_by_name(
    serve: Serve, backend: ScriptedBackend, body: dict[str, Any], param: str
) -> None:
    with Caches(serve(backend)) as caches:
        refused = caches.http.post("/caching", json=body)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == param


def test_references_that_cannot_be_are_refused(serve: Serve, backend: ScriptedBackend) -> None:
    with Caches(serve(backend)) as caches:
        cache = caches.make()
        first = {"role": "cache", "content": f"cache_id={cache['id']}"}
        for body, headers, status in (
            ({"messages": [first, ASKING], "tools": [TOOL]}, {}, 400),
            ({"messages": [ASKING, first]}, {}, 400),
            ({"messages": [first, ASKING]}, {"x-msh-context-cache": cache["id"]}, 400),
            ({"messages": [{"role": "cache", "content": "cache_id=cache-none"}, ASKING]}, {}, 404),
            ({"messages": [SYSTEM, ASKING]}, {"x-msh-context-cache": "cache-none"}, 404),
            (
                {"messages": [SYSTEM, ASKING]},
                {"x-msh-context-cache": cache["id"], "x-msh-context-cache-reset-ttl": "9999"},
                400,
            ),
        ):
            refused = caches.http.post("/chat/completions", json=body, headers=headers)
            assert refused.status_code == status, refused.text
        assert not backend.completer.asked


def test_an_expired_cache_is_made_ready_again_by_a_request_that_resets_its_time(
    serve: Serve, backend: ScriptedBackend
) -> None:
    server = serve(backend)
    with Caches(server) as caches:
        cache = caches.make(ttl=60)
        keeper = server.app.state.caching.keeper
        keeper._clock = lambda: time.time() + 100
        eventually(lambda: caches.get(cache["id"])["status"] == "expired")
        plain = {"messages": [{"role": "cache", "content": f"cache_id={cache['id']}"}, ASKING]}
        renewing = {"messages": [{"role": "cache", "content": f"cache_id={cache['id']};reset_ttl=300"}, ASKING]}
        for body, status in ((plain, "expired"), (renewing, "pending")):
            answer = caches.http.post("/chat/completions", json=body)
            assert answer.json()["choices"][0]["message"]["content"] == "At six.", "its messages are known all the same"
            assert "msh-context-cache-id" not in answer.headers
            assert caches.get(cache["id"])["status"] in (status, "ready")
        eventually(lambda: caches.get(cache["id"])["status"] == "ready")
        assert caches.http.post("/chat/completions", json=plain).headers["msh-context-cache-id"] == cache["id"]
        assert len(caches.rows("cache_call")) == len(caches.rows("cache_creation")) == 1
        assert len(caches.rows("cache_storage")) == 2, "one minute of each time"


def test_a_server_that_stops_charges_what_has_started(tmp_path: Path, backend: ScriptedBackend) -> None:
    settings = ServeSettings(port=0, data_dir=tmp_path, caching=CachingSettings(sweep_s=3_600))
    app = create_app(backend, settings)
    with LiveServer(app, settings) as server, Caches(server) as caches:
        caches.make()
        app.state.caching.keeper._clock = lambda: time.time() + 130
        assert len(caches.rows("cache_storage")) == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "accounts.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM usage WHERE kind = 'cache_storage'").fetchone() == (3,)


def test_a_call_that_got_no_answer_is_not_charged(serve: Serve, backend: ScriptedBackend) -> None:
    backend.completer.reply = lambda _: Reply(error=BackendError("it is down"))
    with Caches(serve(backend)) as caches:
        cache = caches.make()
        messages = [{"role": "cache", "content": f"cache_id={cache['id']};reset_ttl=3600"}, ASKING]
        assert caches.http.post("/chat/completions", json={"messages": messages}).status_code == 500
        assert not caches.rows("cache_call")
        assert caches.get(cache["id"])["expired_at"] == cache["expired_at"]


def test_a_request_without_a_model_is_for_the_caches(serve: Serve, backend: ScriptedBackend) -> None:
    other = ModelCard(id="other", created=1, owned_by="me", context_length=4096)
    backend.models = [*backend.models, other]
    with Caches(serve(backend)) as caches:
        cache = caches.make(model="other")
        messages = [{"role": "cache", "content": f"cache_id={cache['id']}"}, ASKING]
        used = caches.http.post("/chat/completions", json={"messages": messages})
        assert (used.json()["model"], used.headers["msh-context-cache-id"]) == ("other", cache["id"])
        otherwise = caches.http.post("/chat/completions", json={"messages": messages, "model": "kimi-test"})
        assert "msh-context-cache-id" not in otherwise.headers


def test_keys_see_their_own_caches_only_and_a_revoked_ones_are_let_go(serve: Serve, backend: ScriptedBackend) -> None:
    server = serve(backend, require_keys=True, caching=CachingSettings(sweep_s=0.2))
    settings = server.app.state.settings
    keys = KeyStore(server.app.state.database, key_secret(settings.data_folder))
    ana, ben = (keys.create(name, scopes=["chat", "caching"]) for name in ("ana", "ben"))
    with Caches(server, ana.secret) as hers, Caches(server, ben.secret) as his:
        cache = hers.make(tags=["docs"])
        assert his.http.get(f"/caching/{cache['id']}").status_code == 404
        assert his.http.get("/caching").json()["data"] == []
        naming = {"messages": [{"role": "cache", "content": "tag=docs"}, ASKING]}
        assert his.http.post("/chat/completions", json=naming).status_code == 404
        used = hers.http.post("/chat/completions", json=naming)
        assert used.headers["msh-context-cache-id"] == cache["id"]
        assert {row["key_id"] for kind in ("cache_creation", "cache_call") for row in hers.rows(kind)} == {
            ana.record.id
        }
        keys.revoke(ana.record.id)
        eventually(lambda: not server.app.state.caching.keeper.content(cache["id"]))


def test_over_the_engine_a_cache_holds_its_blocks_until_it_is_deleted(serve: Serve) -> None:
    backend = local_backend()
    with Caches(ready(serve(backend))) as caches:
        cache = caches.make(tools=[TOOL])
        pinned = backend.gauges().extra["cache_tokens_pinned"]
        assert cache["tokens"] - 16 < pinned <= cache["tokens"]
        messages = [{"role": "cache", "content": f"cache_id={cache['id']}"}, ASKING]
        used = caches.http.post("/chat/completions", json={"messages": messages, "max_tokens": 4, "seed": 1})
        assert used.json()["usage"]["cached_tokens"] == cache["tokens"]
        caches.http.delete(f"/caching/{cache['id']}")
        eventually(lambda: backend.gauges().extra["cache_tokens_pinned"] == 0 and is_idle(backend))


def test_a_prefix_beyond_the_context_is_refused_and_one_beyond_the_engines_share_says_so(serve: Serve) -> None:
    name = ModelName.parse("tiny:random")
    backend = LocalBackend(name, name.sizes(1_024), EngineConfig(num_threads=1, pinned_share=0.002))
    with Caches(ready(serve(backend))) as caches:
        refused = caches.http.post("/caching", json={"messages": [{**SYSTEM, "content": "word " * 1_000}]})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        cache_id = caches.http.post("/caching", json={"messages": [SYSTEM]}).json()["id"]
        eventually(lambda: caches.get(cache_id)["status"] == "error")
        error = caches.get(cache_id)["error"]
        assert error["type"] == "cache_full"
        assert "expected at most 128 in all (engine.pinned_share of engine.cache_tokens)" in error["message"]
        plain = {"messages": [{"role": "cache", "content": f"cache_id={cache_id}"}, ASKING], "max_tokens": 2}
        answer = caches.http.post("/chat/completions", json=plain)
        assert answer.status_code == 200, "its messages are known all the same"
        assert "msh-context-cache-id" not in answer.headers
        assert not caches.rows("cache_creation")
