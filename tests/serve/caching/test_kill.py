"""`chogori serve` is killed with caches in it, and another process takes over their database."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx

from tests.serve.local_engine import eventually
from tests.serve.server_process import ServerProcess, server_process

SYSTEM = {"role": "system", "content": "The harbour opens at six. " * 20}
NAMING = {"messages": [{"role": "cache", "content": "tag=docs"}, {"role": "user", "content": "When?"}], "max_tokens": 3}


def ask(server: ServerProcess, method: str, path: str, **body: Any) -> httpx.Response:
    json_body = body or None
    return httpx.request(method, f"{server.url}/v1{path}", json=json_body, timeout=60, trust_env=False)


def test_a_killed_server_loses_no_cache_and_no_minute(tmp_path: Path) -> None:
    database = tmp_path / "data" / "accounts.sqlite"
    with server_process(tmp_path) as server:
        cache_id = ask(server, "POST", "/caching", messages=[SYSTEM], tags=["docs"], ttl=3600).json()["id"]
        eventually(lambda: ask(server, "GET", f"/caching/{cache_id}").json()["status"] == "ready")
        first = ask(server, "POST", "/chat/completions", **NAMING)
        assert first.headers["msh-context-cache-id"] == cache_id
        server.process.kill()
        server.process.wait()

    # A pause of ten minutes and a half, told by moving its beginning back.
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE context_caches SET stored_since = stored_since - 630")

    with server_process(tmp_path) as server:
        eventually(lambda: ask(server, "GET", f"/caching/{cache_id}").json()["status"] == "ready")
        again = ask(server, "POST", "/chat/completions", **NAMING)
        assert again.headers["msh-context-cache-id"] == cache_id
        assert again.json()["usage"]["cached_tokens"] == first.json()["usage"]["cached_tokens"] > 0
        ask(server, "DELETE", f"/caching/{cache_id}")
        ended_at = time.time()

    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT kind, ref, quantity, cost, unit_price FROM usage WHERE ref IS NOT NULL"
        ).fetchall()
        left = connection.execute("SELECT count(*) FROM context_caches").fetchone()
    assert left == (0,)
    by_kind = {
        kind: [row for row in rows if row[0] == kind] for kind in ("cache_creation", "cache_storage", "cache_call")
    }
    assert [row[1] for row in by_kind["cache_creation"]] == [f"{cache_id}:creation"]
    assert len(by_kind["cache_call"]) == 2
    minutes = sorted(int(row[1].rpartition(":")[2]) for row in by_kind["cache_storage"])
    assert minutes == list(range(len(minutes)))
    # Eleven have started in 630 seconds; what the test itself took may begin one or two more.
    assert 11 <= len(minutes) <= 13, (minutes, ended_at)
    assert all(cost == quantity * price for _, _, quantity, cost, price in rows)
    assert json.dumps(SYSTEM["content"]) not in (tmp_path / "stderr.txt").read_text()
