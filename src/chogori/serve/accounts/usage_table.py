"""The rows of usage: one for each request that was sent to a model, and one for each charge of a context cache.

A row holds the prices it was made with, so its cost follows from the row alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import sqlalchemy as sql

from chogori.serve.accounts.database import metadata

ChargeKind = Literal["cache_creation", "cache_storage", "cache_call"]
Outcome = Literal["finished", "cancelled", "failed", "interrupted"]
"""How a request ended: whole; left by its client or its server's stop; by an error; by the death of its server."""

DAY_S = 86_400

usage = sql.Table(
    "usage",
    metadata,
    sql.Column("id", sql.String(32), primary_key=True),
    sql.Column("kind", sql.String(16), nullable=False),  # "request", or a ChargeKind
    sql.Column("ref", sql.String(200), unique=True),  # of a charge: the same one is made once
    sql.Column("process_id", sql.String(32), nullable=False),  # of the server that writes the row
    sql.Column("request_id", sql.String(128)),
    sql.Column("key_id", sql.String(32)),
    sql.Column("api", sql.String(32)),
    sql.Column("model", sql.String(200), nullable=False),
    sql.Column("opened_at", sql.Double, nullable=False),  # Unix time in seconds
    sql.Column("day", sql.Integer, nullable=False),  # of opened_at: days of UTC since 1970-01-01
    sql.Column("closed_at", sql.Double),
    sql.Column("outcome", sql.String(16)),  # None while the request runs
    sql.Column("prompt_tokens", sql.BigInteger, nullable=False, default=0),
    sql.Column("cached_tokens", sql.BigInteger, nullable=False, default=0),
    sql.Column("completion_tokens", sql.BigInteger, nullable=False, default=0),
    sql.Column("quantity", sql.BigInteger, nullable=False, default=0),  # of a charge
    sql.Column("priced_as", sql.String(200)),  # the price table's entry; None where it has none
    # Prices and cost in 1e-12 USD, so that every sum is exact.
    sql.Column("input_price", sql.BigInteger, nullable=False, default=0),
    sql.Column("cached_input_price", sql.BigInteger, nullable=False, default=0),
    sql.Column("output_price", sql.BigInteger, nullable=False, default=0),
    sql.Column("unit_price", sql.BigInteger, nullable=False, default=0),
    sql.Column("cost", sql.BigInteger, nullable=False, default=0),
    sql.Index("usage_by_key", "key_id", "opened_at"),
    sql.Index("usage_by_time", "opened_at"),
)
sql.Index(
    "usage_open", usage.c.process_id, sqlite_where=usage.c.outcome.is_(None), postgresql_where=usage.c.outcome.is_(None)
)


def cost_of(row: Mapping[str, int]) -> int:
    """What a row costs, in 1e-12 USD, from nothing but the row."""
    uncached = row["prompt_tokens"] - row["cached_tokens"]
    return (
        uncached * row["input_price"]
        + row["cached_tokens"] * row["cached_input_price"]
        + row["completion_tokens"] * row["output_price"]
        + row["quantity"] * row["unit_price"]
    )
