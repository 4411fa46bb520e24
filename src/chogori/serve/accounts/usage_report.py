"""Usage summed up: by key, by model or by day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sql

from chogori.serve.accounts.database import Database
from chogori.serve.accounts.keys import api_key
from chogori.serve.accounts.usage_table import DAY_S, usage

Grouping = Literal["key", "model", "day"]
_SPLIT = 10**6
"""Costs are summed in two parts, so that no database's integers overflow: 1e-12 USD go past theirs at 9 million USD."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageTotal:
    """All usage of one key, model or day."""

    group: str
    """The key's id, the model, or the day in UTC as 2026-11-24; empty for requests without a key."""
    name: str
    """The key's name; else as `group`."""
    requests: int
    unfinished: int
    """Of the requests, those that did not end whole, and those that run."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_picousd: int
    """In 1e-12 USD, context caches included."""
    num_unpriced: int
    """Rows of models that the price table had no entry for: they cost nothing."""


def usage_totals(database: Database, by: Grouping, *, since: float | None = None) -> list[UsageTotal]:
    """Sums over the rows opened since a Unix time; all of them by default. Raises DatabaseError."""
    columns: dict[Grouping, sql.ColumnElement[object]] = {
        "key": sql.func.coalesce(usage.c.key_id, ""),
        "model": usage.c.model,
        "day": usage.c.day,
    }
    group = columns[by].label("grouping")
    is_request = usage.c.kind == "request"
    whole = sql.func.coalesce(usage.c.outcome, "") == "finished"
    query = sql.select(
        group,
        _count(is_request).label("requests"),
        _count(is_request & ~whole).label("unfinished"),
        sql.func.sum(usage.c.prompt_tokens).label("prompt_tokens"),
        sql.func.sum(usage.c.cached_tokens).label("cached_tokens"),
        sql.func.sum(usage.c.completion_tokens).label("completion_tokens"),
        sql.func.sum(usage.c.cost // _SPLIT).label("cost_high"),
        sql.func.sum(usage.c.cost % _SPLIT).label("cost_low"),
        _count(usage.c.priced_as.is_(None)).label("num_unpriced"),
    ).group_by(group)
    if since is not None:
        query = query.where(usage.c.opened_at >= since)
    with database.read() as connection:
        rows = connection.execute(query.order_by(group)).all()
        names = {row.id: row.name for row in connection.execute(sql.select(api_key.c.id, api_key.c.name))}
    totals: list[UsageTotal] = []
    for row in rows:
        key = datetime.fromtimestamp(row.grouping * DAY_S, UTC).date().isoformat() if by == "day" else row.grouping
        totals.append(
            UsageTotal(
                group=key,
                name=names.get(key, key or "(open server)") if by == "key" else key,
                requests=int(row.requests),
                unfinished=int(row.unfinished),
                prompt_tokens=int(row.prompt_tokens),
                cached_tokens=int(row.cached_tokens),
                completion_tokens=int(row.completion_tokens),
                cost_picousd=int(row.cost_high) * _SPLIT + int(row.cost_low),
                num_unpriced=int(row.num_unpriced),
            )
        )
    return totals


def _count(condition: sql.ColumnElement[bool]) -> sql.ColumnElement[int]:
    return sql.func.sum(sql.case((condition, 1), else_=0))
