"""A client of `/v1/caching`, what it caches, and a look into the ledger of its server."""

from __future__ import annotations

from typing import Any

import httpx
import sqlalchemy as sql
from openai import OpenAI

from chogori.serve.accounts.usage_table import usage
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import eventually

SYSTEM = {"role": "system", "content": "The harbour opens at six. " * 20}
TOOL = {
    "type": "function",
    "function": {"name": "open_gate", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}},
}
ASKING = {"role": "user", "content": "When does it open?"}


class Caches:
    """A client of `/v1/caching`."""

    def __init__(self, server: LiveServer, key: str = "any") -> None:
        self.server = server
        headers = {"authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=f"{server.url}/v1", headers=headers, trust_env=False)
        self.sdk = OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)

    def __enter__(self) -> Caches:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.sdk.close()

    def make(self, **fields: Any) -> dict[str, Any]:
        """A cache that is ready."""
        made = self.http.post("/caching", json={"messages": [SYSTEM], "ttl": 600, **fields})
        assert made.status_code == 200, made.text
        assert made.json()["status"] == "pending"
        cache_id = made.json()["id"]
        eventually(lambda: self.get(cache_id)["status"] == "ready")
        return self.get(cache_id)

    def get(self, cache_id: str) -> dict[str, Any]:
        return self.http.get(f"/caching/{cache_id}").json()

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """What the ledger has of a kind."""
        with self.server.app.state.database.read() as connection:
            rows = connection.execute(sql.select(usage).where(usage.c.kind == kind)).mappings()
            return [dict(row) for row in rows]
