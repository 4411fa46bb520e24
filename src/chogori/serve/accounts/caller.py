"""Who asks: a key with its scopes and limits, or anybody, where a server is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from starlette.requests import HTTPConnection

from chogori.errors import ConfigError

Scope = Literal["chat", "files", "caching", "admin"]
"""What a key may do: ask models; store files; keep context caches; read the server's metrics."""
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyLimits:
    """How much a key may ask, in each server process; None is without limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers. An answer that has begun is finished; the next request then waits longer."""
    concurrent_requests: int | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent_requests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1, or none for no limit")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Whoever a request comes from."""

    key_id: str | None
    """The public part of a key; None on an open server."""
    name: str
    scopes: frozenset[Scope]
    models: frozenset[str] | None = None
    """Ids of the models that may be asked; None for all."""
    limits: KeyLimits = KeyLimits()
    credit_picousd: int | None = None
    """What may be spent in all, in 1e-12 USD; None is without limit."""
    spent_picousd: int = 0
    """What was spent when the request came, in 1e-12 USD."""

    @property
    def owner(self) -> str:
        """By what its things are told from those of others: its key's id; empty on an open server."""
        return self.key_id or ""

    @property
    def has_credit(self) -> bool:
        """Whether anything is left to spend."""
        return self.credit_picousd is None or self.spent_picousd < self.credit_picousd


ANYBODY = Caller(key_id=None, name="open", scopes=frozenset(SCOPES))
"""The caller of every request to an open server."""


def caller_of(request: HTTPConnection) -> Caller:
    """Who sent a request."""
    return request.scope["chogori.caller"]
