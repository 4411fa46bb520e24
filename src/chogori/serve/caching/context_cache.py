"""One context cache: what it holds, how long it lives, and which minutes of storage it owes.

Its life, where `status` is what is stored and time does the rest:

    pending ──kept──> ready ──expires──> expired ──renewed──> pending
       └──cannot be kept──> error ──renewed──> pending
    any ──its model is no longer served──> inactive ──served again──> pending

A restart makes ready caches pending until their prefix is computed again; their time, and what it costs, runs on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from chogori.chat.messages import JSON
from chogori.serve.caching.storage_minutes import started_minutes

Status = Literal["pending", "ready", "error", "inactive", "expired"]
Object = Mapping[str, JSON]


@dataclass(frozen=True, kw_only=True)
class CacheFailure:
    """Why a prefix could not be kept."""

    type: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CacheContent:
    """What a cache holds, as it was sent; never changes."""

    messages: Sequence[Object]
    tools: Sequence[Object] = ()


@dataclass(frozen=True, kw_only=True)
class ContextCache:
    """A cache object, without its content, which may be large. Times are Unix seconds."""

    id: str
    owner: str
    """Id of the key that made it; empty where the server asks for none."""
    model: str
    name: str = ""
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    created_at: int
    expires_at: int
    tokens: int
    stored_status: Status = "pending"
    failure: CacheFailure | None = None
    stored_since: int | None = None
    """Since when it is stored without a break; None before it is ready, and once that time is settled."""
    minutes_before: int = 0
    """Started minutes of earlier times of storage."""
    minutes_charged: int = 0
    """Minutes that the ledger has, of those numbered from 0 over its whole life."""

    def status(self, now: int) -> Status:
        """What it is at a time."""
        lapses = self.stored_status in ("pending", "ready")
        return "expired" if lapses and now >= self.expires_at else self.stored_status

    def minutes_due(self, now: int) -> int:
        """Minutes that have started by a time, over its whole life."""
        if self.stored_since is None:
            return self.minutes_before
        return self.minutes_before + started_minutes(self.stored_since, self.expires_at, now)

    def settled(self, now: int) -> ContextCache:
        """With its minutes charged; its time of storage is over where it has expired."""
        due = max(self.minutes_due(now), self.minutes_charged)
        if now < self.expires_at:
            return replace(self, minutes_charged=due)
        return replace(self, minutes_charged=due, minutes_before=due, stored_since=None)
