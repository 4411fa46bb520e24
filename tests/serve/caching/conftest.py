"""What the tests of context caching share: a clock that stands, a ledger on paper, prefixes that are counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chogori.chat.completer import ChatRequest
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.usage_table import ChargeKind
from chogori.serve.caching.cache_keeper import CacheKeeper
from chogori.serve.caching.cache_store import CacheStore
from chogori.serve.caching.context_cache import CacheContent
from chogori.serve.caching.context_caching import ContextCaching, Lifetime, NewCache
from chogori.serve.caching.settings import CachingSettings
from tests.serve.accounts.conftest import postgres, url

__all__ = ["postgres", "url"]


@dataclass(frozen=True, kw_only=True)
class Charge:
    owner: str
    kind: ChargeKind
    model: str
    quantity: int


@dataclass
class PaperLedger:
    """Keeps charges by their references, as the ledger does."""

    charges: dict[str, Charge] = field(default_factory=dict[str, Charge])
    attempts: Counter[str] = field(default_factory=Counter[str])
    fails_after: int | None = None
    """Where set, only so many further charges are made."""

    async def charge_owner(
        self, owner: str, *, kind: ChargeKind, model: str, quantity: int, ref: str, request_id: str | None = None
    ) -> None:
        await asyncio.sleep(0)
        if self.fails_after is not None:
            if not self.fails_after:
                raise ConnectionError("the process was killed")
            self.fails_after -= 1
        self.attempts[ref] += 1
        self.charges.setdefault(ref, Charge(owner=owner, kind=kind, model=model, quantity=quantity))

    def count(self, kind: ChargeKind) -> int:
        return sum(charge.kind == kind for charge in self.charges.values())


@dataclass
class CountedPrefixes:
    """Pins nothing, and knows what is pinned. A token is a character."""

    pinned: Counter[str] = field(default_factory=Counter[str])
    errors: list[Exception] = field(default_factory=list[Exception])
    """Raised by the next attempts, in order."""
    may_pin: asyncio.Event | None = None

    def count_prefix(self, request: ChatRequest) -> int:
        return sum(len(message.content) for message in request.messages)

    async def pin_prefix(self, request: ChatRequest) -> CountedPin:
        if self.may_pin is not None:
            await self.may_pin.wait()
        if self.errors:
            raise self.errors.pop(0)
        text = "|".join(message.content for message in request.messages)
        self.pinned[text] += 1
        return CountedPin(self, text)


@dataclass
class CountedPin:
    prefixes: CountedPrefixes
    text: str
    released: bool = False

    def release(self) -> None:
        if not self.released:
            self.released = True
            self.prefixes.pinned[self.text] -= 1
            self.prefixes.pinned += Counter[str]()


class World:
    """One database, and servers over it that start and die."""

    def __init__(self, folder: Path, *, url: str | None = None, **settings: object) -> None:
        self.database = Database.open(url or f"sqlite:///{folder / 'accounts.sqlite'}")
        self.store = CacheStore(self.database)
        self.ledger = PaperLedger()
        self.settings = CachingSettings(**settings)  # pyright: ignore[reportArgumentType]
        self.time = 1_000_000.0
        self.models = {"kimi-test"}
        self.boot()

    def boot(self) -> None:
        """A process begins; what an earlier one had pinned is gone."""
        self.prefixes = CountedPrefixes()
        self.keeper = CacheKeeper(
            self.store, self.prefixes, self.ledger, self.settings, models=lambda: self.models, clock=lambda: self.time
        )
        self.caching = ContextCaching(self.store, self.keeper, self.prefixes, self.settings)

    async def sweep(self) -> int | None:
        """One look at all caches, and what it began is done."""
        next_at = await self.keeper.sweep()
        await self.keeper.wait_until_kept()
        return next_at

    async def make(
        self, text: str = "harbour", *, owner: str = "ana", ttl_s: int | None = None, **fields: object
    ) -> str:
        """A cache that is ready; its id."""
        cache = await self.caching.create(owner, new_cache(text, ttl_s=ttl_s, **fields))
        await self.keeper.wait_until_kept()
        return cache.id

    async def status(self, cache_id: str, owner: str = "ana") -> str:
        return self.keeper.status(await self.caching.get(owner, cache_id))


def new_cache(text: str = "harbour", *, ttl_s: int | None = None, **fields: object) -> NewCache:
    values: dict[str, object] = {
        "model": "kimi-test",
        "context_length": 1_000,
        "content": CacheContent(messages=[{"role": "system", "content": text}]),
        "name": "",
        "description": "",
        "metadata": {},
        "tags": (),
        "lifetime": Lifetime(ttl_s=ttl_s),
        **fields,
    }
    return NewCache(**values)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.database.close()
