from __future__ import annotations

import uuid
from typing import Any

from chogori.serve.accounts.database import Database
from chogori.serve.accounts.keys import KeyStore
from chogori.serve.accounts.usage_report import UsageTotal, usage_totals
from chogori.serve.accounts.usage_table import DAY_S, usage


def add(database: Database, **values: Any) -> None:
    row: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "kind": "request",
        "process_id": "p",
        "model": "nano",
        "opened_at": 0.0,
        "outcome": "finished",
        "priced_as": "nano",
        **values,
    }
    with database.begin() as connection:
        connection.execute(usage.insert().values({**row, "day": int(row["opened_at"] // DAY_S)}))


def total(group: str, name: str, **values: int) -> UsageTotal:
    nothing = dict.fromkeys(
        ("requests", "unfinished", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_picousd"), 0
    )
    return UsageTotal(group=group, name=name, num_unpriced=values.pop("num_unpriced", 0), **(nothing | values))


def test_sums_by_key_model_and_day(database: Database) -> None:
    key_id = KeyStore(database, b"s" * 32).create("Ada", scopes=["chat"]).record.id
    add(database, key_id=key_id, prompt_tokens=5, cached_tokens=2, completion_tokens=3, cost=10)
    add(database, key_id=key_id, opened_at=DAY_S - 0.5, outcome="cancelled", completion_tokens=1, cost=1)
    add(database, key_id=key_id, opened_at=DAY_S, kind="cache_call", model="k2", cost=100)
    add(database, opened_at=2.5 * DAY_S, outcome=None, model="k2", priced_as=None, prompt_tokens=7)
    assert usage_totals(database, "key") == [
        total("", "(open server)", requests=1, unfinished=1, prompt_tokens=7, num_unpriced=1),
        total(
            key_id,
            "Ada",
            requests=2,
            unfinished=1,
            prompt_tokens=5,
            cached_tokens=2,
            completion_tokens=4,
            cost_picousd=111,
        ),
    ]
    assert [(t.group, t.requests, t.cost_picousd) for t in usage_totals(database, "model")] == [
        ("k2", 1, 100),
        ("nano", 2, 11),
    ]
    assert [(t.group, t.cost_picousd) for t in usage_totals(database, "day")] == [
        ("1970-01-01", 11),
        ("1970-01-02", 100),
        ("1970-01-03", 0),
    ]
    assert [t.group for t in usage_totals(database, "day", since=DAY_S)] == ["1970-01-02", "1970-01-03"]


def test_sums_go_past_the_databases_integers(database: Database) -> None:
    """Nine million USD in 1e-12 USD are 63 bits; a large operator's sum is above that."""
    for _ in range(5):
        add(database, cost=2**63 - 1)
    assert usage_totals(database, "model")[0].cost_picousd == 5 * (2**63 - 1)
