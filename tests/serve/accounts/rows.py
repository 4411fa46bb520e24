"""Rows of usage as tests look at them, and what must hold for any of them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sql

from chogori.serve.accounts.database import Database
from chogori.serve.accounts.keys import api_key
from chogori.serve.accounts.usage_table import cost_of, usage

Row = dict[str, Any]


def rows_of(database: Database) -> list[Row]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(sql.select(usage).order_by(usage.c.opened_at)).mappings()]


def check_books(database: Database) -> list[Row]:
    """Every cost follows from its row alone, and what a key has spent is the sum of its rows."""
    rows = rows_of(database)
    for row in rows:
        assert row["cost"] == cost_of(row), row
        assert 0 <= row["cached_tokens"] <= row["prompt_tokens"], row
    with database.read() as connection:
        spent = {row.id: row.spent for row in connection.execute(sql.select(api_key))}
    for key_id, amount in spent.items():
        assert amount == sum(row["cost"] for row in rows if row["key_id"] == key_id), key_id
    return rows
