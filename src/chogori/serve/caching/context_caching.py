"""What clients ask of context caches: make, look at, renew, delete and tag them, and name one in a chat request."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from chogori.errors import ContextLengthError
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.ledger import UsageLedger
from chogori.serve.api_errors import ApiError
from chogori.serve.backend import Backend
from chogori.serve.caching.cache_keeper import CacheKeeper
from chogori.serve.caching.cache_ledger import OwnersLedger
from chogori.serve.caching.cache_reference import TAG, CacheReference
from chogori.serve.caching.cache_store import CacheStore, Page, Tag
from chogori.serve.caching.context_cache import CacheContent, ContextCache
from chogori.serve.caching.prefix import Prefix
from chogori.serve.caching.prefix_pinner import PrefixPinner, pinner_of
from chogori.serve.caching.settings import CachingSettings

_ID = re.compile(r"cache-[0-9a-f]{32}")
_TAG = re.compile(TAG)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifetime:
    """How long a cache is to live, said one way or the other; neither for as long as is usual."""

    ttl_s: int | None = None
    expires_at: int | None = None
    """Unix seconds; 0 for none, as Moonshot's API has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewCache:
    """A cache as it is asked for."""

    model: str
    context_length: int | None
    """The model's, in tokens, where it is known."""
    content: CacheContent
    name: str
    description: str
    metadata: Mapping[str, str]
    lifetime: Lifetime
    tags: Sequence[str]


def context_caching(
    backend: Backend, database: Database, ledger: UsageLedger, settings: CachingSettings
) -> ContextCaching:
    """The context caches of a server over a backend."""
    store, pinner = CacheStore(database), pinner_of(backend)
    keeper = CacheKeeper(
        store, pinner, OwnersLedger(ledger), settings, models=lambda: {card.id for card in backend.models}
    )
    return ContextCaching(store, keeper, pinner, settings)


class ContextCaching:
    """The context caches of one server, each of which its owner alone knows.

    Args:
        store: where they are.
        keeper: what looks after them.
        pinner: what counts their tokens.
        settings: how long and how many.
    """

    def __init__(self, store: CacheStore, keeper: CacheKeeper, pinner: PrefixPinner, settings: CachingSettings) -> None:
        self.keeper = keeper
        self._store, self._pinner, self._settings = store, pinner, settings

    async def create(self, owner: str, new: NewCache) -> ContextCache:
        """Make a cache, pending. Raises RequestError or ApiError for what cannot be."""
        prefix = Prefix.read(new.content)
        now = self.keeper.now
        expires_at = self.expiry(new.lifetime)
        tokens = await asyncio.to_thread(self._pinner.count_prefix, prefix.request(new.model))
        if new.context_length is not None and tokens >= new.context_length:
            raise ContextLengthError(
                f"the cache has {tokens} tokens; expected fewer than the model's context of {new.context_length}, so "
                "that a conversation can go on from it",
                field="messages",
            )
        stored = await asyncio.to_thread(self._store.tokens_of, owner, now)
        if stored + tokens > self._settings.max_tokens_per_key:
            raise ApiError(
                f"the cache has {tokens} tokens and the key's others {stored}; expected at most "
                f"{self._settings.max_tokens_per_key} in all",
                status=429,
                field="messages",
                code="cache_quota_exceeded",
            )
        cache = ContextCache(
            id=f"cache-{uuid.uuid4().hex}",
            owner=owner,
            model=new.model,
            name=new.name,
            description=new.description,
            metadata=new.metadata,
            created_at=now,
            expires_at=expires_at,
            tokens=tokens,
        )
        await asyncio.to_thread(self._store.add, cache, new.content, new.tags)
        self.keeper.keep(cache)
        return cache

    async def get(self, owner: str, cache_id: str) -> ContextCache:
        """An owner's cache. Raises the 404 of one that is not there, or is another's."""
        cache = await asyncio.to_thread(self._store.get, cache_id) if _ID.fullmatch(cache_id) else None
        if cache is None or cache.owner != owner:
            raise _no_such_cache(cache_id)
        return cache

    async def content(self, cache: ContextCache) -> CacheContent:
        """What a cache holds. Raises the 404 of one that is gone meanwhile."""
        known = self.keeper.content(cache.id) or await asyncio.to_thread(self._store.content, cache.id)
        if known is None:
            raise _no_such_cache(cache.id)
        return known

    async def list(self, owner: str, page: Page, metadata: Mapping[str, str]) -> list[ContextCache]:
        """An owner's caches. Raises the 404 of an `after` or `before` that is not among them."""
        try:
            return await asyncio.to_thread(self._store.list, owner, page, metadata)
        except KeyError:
            raise _no_such_end(page) from None

    async def renew(
        self, owner: str, cache_id: str, *, lifetime: Lifetime | None, metadata: Mapping[str, str] | None = None
    ) -> ContextCache:
        """Change how long a cache lives, and its metadata; one that has expired or failed is kept ready again."""
        async with self.keeper.changing:
            cache = await self.keeper.settle(await self.get(owner, cache_id))
            now = self.keeper.now
            if metadata is not None:
                cache = replace(cache, metadata=metadata)
            if lifetime is not None:
                if cache.status(now) in ("expired", "error"):
                    self.keeper.release(cache_id)
                    cache = replace(cache, stored_status="pending", failure=None)
                cache = replace(cache, expires_at=self.expiry(lifetime))
            await asyncio.to_thread(self._store.update, cache)
        self.keeper.keep(cache)
        return cache

    async def delete(self, owner: str, cache_id: str) -> None:
        """Let a cache go, with its tags; what has started of its last minute is charged."""
        async with self.keeper.changing:
            await self.keeper.settle(await self.get(owner, cache_id))
            await asyncio.to_thread(self._store.delete, cache_id)
            self.keeper.release(cache_id)

    async def tag(self, owner: str, tag: str, cache_id: str) -> Tag:
        """Give an owner's cache a tag, or move the tag there."""
        await self.get(owner, cache_id)
        wanted = Tag(owner=owner, tag=tag, cache_id=cache_id, created_at=self.keeper.now)
        try:
            return await asyncio.to_thread(self._store.tag, wanted)
        except KeyError:
            raise _no_such_cache(cache_id) from None

    def tags_of(self, cache: ContextCache) -> list[str]:
        """Tags of a cache, by name. Blocks."""
        return self._store.tags_of(cache.id)

    async def get_tag(self, owner: str, tag: str) -> Tag:
        """An owner's tag. Raises the 404 of one that is not there."""
        found = await asyncio.to_thread(self._store.get_tag, owner, tag) if _TAG.fullmatch(tag) else None
        if found is None:
            raise ApiError(f"no cache has the tag {tag!r}", status=404, code="cache_tag_not_found")
        return found

    async def list_tags(self, owner: str, page: Page) -> list[Tag]:
        """An owner's tags. Raises the 404 of an `after` or `before` that is not among them."""
        try:
            return await asyncio.to_thread(self._store.list_tags, owner, page)
        except KeyError:
            raise _no_such_end(page) from None

    async def delete_tag(self, owner: str, tag: str) -> None:
        """Remove a tag, where there is one."""
        if _TAG.fullmatch(tag):
            await asyncio.to_thread(self._store.delete_tag, owner, tag)

    async def find(self, owner: str, reference: CacheReference) -> ContextCache:
        """The cache that a chat request names. Raises a 404 where there is none."""
        if reference.reset_ttl_s is not None:
            self.expiry(Lifetime(ttl_s=reference.reset_ttl_s))
        cache_id = reference.cache_id
        if reference.tag is not None:
            cache_id = (await self.get_tag(owner, reference.tag)).cache_id
        assert cache_id is not None, "a reference has an id or a tag"
        return await self.get(owner, cache_id)

    def expiry(self, lifetime: Lifetime) -> int:
        """When a cache of this lifetime, beginning now, expires. Raises ApiError for one that is not allowed."""
        now = self.keeper.now
        latest = now + self._settings.max_ttl_s
        if lifetime.ttl_s is not None and lifetime.expires_at:
            raise ApiError("ttl and expired_at are both given; expected one of them", status=400, field="ttl")
        if lifetime.ttl_s is not None:
            if not 1 <= lifetime.ttl_s <= self._settings.max_ttl_s:
                words = f"ttl is {lifetime.ttl_s} seconds; expected 1 to {self._settings.max_ttl_s}"
                raise ApiError(words, status=400, field="ttl", code="invalid_ttl")
            return now + lifetime.ttl_s
        if not lifetime.expires_at:
            return now + self._settings.default_ttl_s
        if not now < lifetime.expires_at <= latest:
            words = f"expired_at is {lifetime.expires_at}; expected later than now, {now}, and at most {latest}"
            raise ApiError(words, status=400, field="expired_at", code="invalid_ttl")
        return lifetime.expires_at


def _no_such_cache(cache_id: str) -> ApiError:
    return ApiError(f"no cache has the id {cache_id!r}", status=404, code="cache_not_found")


def _no_such_end(page: Page) -> ApiError:
    field = "after" if page.after is not None else "before"
    return ApiError(f"{field} names nothing in this list", status=404, field=field, code="not_in_list")
