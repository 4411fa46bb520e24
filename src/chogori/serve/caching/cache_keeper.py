"""Keeps caches ready while they live, lets them go when they do not, and charges every started minute once."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from chogori.chat.completer import ChatRequest
from chogori.errors import BackendError, CompleterError, DatabaseError, OverloadedError
from chogori.serve.api_errors import api_error_of
from chogori.serve.caching.cache_ledger import CacheLedger
from chogori.serve.caching.cache_store import CacheStore
from chogori.serve.caching.context_cache import CacheContent, CacheFailure, ContextCache, Status
from chogori.serve.caching.prefix import Prefix
from chogori.serve.caching.prefix_pinner import PinnedPrefix, PrefixPinner
from chogori.serve.caching.settings import CachingSettings
from chogori.serve.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

LEAST_PAUSE_S = 0.05
"""Between two sweeps, however many caches expire."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A prefix that is ready in this process."""

    content: CacheContent
    prefix: Prefix
    pin: PinnedPrefix


class CacheKeeper:
    """Looks after the caches of one database for one server.

    Args:
        store: where they are.
        pinner: what keeps their prefixes ready.
        ledger: where their costs go.
        settings: how often to look, and how long expired ones are kept.
        models: the models served; caches of others are inactive.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        store: CacheStore,
        pinner: PrefixPinner,
        ledger: CacheLedger,
        settings: CachingSettings,
        *,
        models: Callable[[], Collection[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._pinner, self._ledger, self._settings = store, pinner, ledger, settings
        self._models, self._clock = models, clock
        self._held: dict[str, Held] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        # One prefix is computed at a time: several would take the engine from everyone else.
        self._turn = asyncio.Lock()
        self.changing = asyncio.Lock()
        """Held while a cache is read, charged and written back: these belong together."""
        self._sweeping: asyncio.Task[None] | None = None
        self._has_begun = False
        self._is_stopping = False

    @property
    def now(self) -> int:
        """Unix time in whole seconds."""
        return int(self._clock())

    def status(self, cache: ContextCache) -> Status:
        """What a cache is now; pending where this process has not its prefix."""
        status = cache.status(self.now)
        return "pending" if status == "ready" and cache.id not in self._held else status

    def content(self, cache_id: str) -> CacheContent | None:
        """What a cache holds, where it is ready here."""
        held = self._held.get(cache_id)
        return held.content if held is not None else None

    async def is_hit(self, cache: ContextCache, asked: ChatRequest) -> bool:
        """Whether a cache is ready, and a conversation goes on from it."""
        held = self._held.get(cache.id)
        if held is None or self.status(cache) != "ready":
            self.keep(cache)
            return False
        return cache.model == asked.model and held.prefix.begins(asked)

    async def used(self, cache: ContextCache, *, expires_at: int | None, request_id: str) -> None:
        """A request hit the cache: charge the call, and what storage has come due; set when it expires, if asked."""
        await self._ledger.charge_owner(
            cache.owner,
            kind="cache_call",
            model=cache.model,
            quantity=1,
            # Clients may choose the request's id; no two calls are the same.
            ref=f"{cache.id}:call:{uuid.uuid4().hex}",
            request_id=request_id,
        )

        def prolonged(current: ContextCache) -> ContextCache:
            lives = expires_at is not None and current.status(self.now) == "ready"
            return replace(current, expires_at=expires_at) if lives else current

        # Most calls change nothing of the cache, and wait for no other.
        if prolonged(cache) != cache or cache.settled(self.now) != cache:
            await self._change(cache.id, prolonged)

    def start(self, lifecycle: Lifecycle) -> None:
        """Begin to keep the caches of the database ready, once the model is; returns at once."""
        self._sweeping = asyncio.create_task(self._run(lifecycle), name="context caching")

    async def stop(self) -> None:
        """Charge what is due, and let every prefix go."""
        self._is_stopping = True
        tasks = [*self._keeping.values(), *([self._sweeping] if self._sweeping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._has_begun:
            try:
                await self.sweep()
            except DatabaseError as error:
                # The next server charges it: minutes have numbers.
                logger.error("what context caches owe could not be charged: %s", error)
        for cache_id in list(self._held):
            self.release(cache_id)

    async def _run(self, lifecycle: Lifecycle) -> None:
        await lifecycle.settled.wait()
        if not lifecycle.ready:
            return
        self._has_begun = True
        while True:
            try:
                next_at = await self.sweep()
            except Exception:
                # What was not charged now is charged the next time: its minutes have numbers.
                logger.exception("context caches could not be looked after; trying again")
                next_at = None
            pause_s = self._settings.sweep_s if next_at is None else next_at - self._clock()
            await asyncio.sleep(min(self._settings.sweep_s, max(pause_s, LEAST_PAUSE_S)))

    async def sweep(self) -> int | None:
        """Charge started minutes, let expired prefixes go, make missing ones. Returns when the next one expires."""
        held = set(self._held)
        caches = await asyncio.to_thread(self._store.everyone)
        closed = await asyncio.to_thread(self._store.of_closed_keys, self._clock())
        now, served = self.now, self._models()
        for cache_id in held - {cache.id for cache in caches if cache.status(now) == "ready"}:
            self.release(cache_id)
        for cache in caches:
            if now >= cache.expires_at + self._settings.keep_expired_s or cache.id in closed:
                await self._forget(cache)
            elif cache.model not in served:
                await self._retire(cache)
            else:
                if cache.stored_status == "inactive" or cache.settled(now) != cache:
                    cache = await self._change(cache.id, _revived) or cache
                self.keep(cache)
        return min((cache.expires_at for cache in caches if cache.expires_at > now), default=None)

    async def wait_until_kept(self) -> None:
        """Until nothing is being made ready."""
        while self._keeping:
            await asyncio.gather(*self._keeping.values(), return_exceptions=True)

    async def _change(self, cache_id: str, change: Callable[[ContextCache], ContextCache]) -> ContextCache | None:
        """Charge what is due of a cache and change it, as it is in the database; None where it is gone."""
        async with self.changing:
            cache = await asyncio.to_thread(self._store.get, cache_id)
            if cache is None:
                return None
            settled = await self.settle(cache)
            changed = change(settled)
            if changed != settled:
                await asyncio.to_thread(self._store.update, changed)
            return changed

    async def _forget(self, cache: ContextCache) -> None:
        await self._change(cache.id, lambda same: same)
        await asyncio.to_thread(self._store.delete, cache.id)
        self.release(cache.id)

    async def _retire(self, cache: ContextCache) -> None:
        """A cache whose model is not served: nothing of it is stored, and no further minute starts."""
        if cache.stored_status == "inactive" or cache.status(self.now) == "expired":
            return
        async with self.changing:
            await asyncio.to_thread(self._store.update, replace(_ended(cache), stored_status="inactive"))
        self.release(cache.id)

    async def settle(self, cache: ContextCache) -> ContextCache:
        """Charge the minutes that have started, each by its number. The caller holds `changing`."""
        settled = cache.settled(self.now)
        await asyncio.gather(
            *(
                self._ledger.charge_owner(
                    cache.owner,
                    kind="cache_storage",
                    model=cache.model,
                    quantity=cache.tokens,
                    ref=f"{cache.id}:minute:{minute}",
                )
                for minute in range(cache.minutes_charged, settled.minutes_charged)
            )
        )
        if settled != cache:
            await asyncio.to_thread(self._store.update, settled)
        return settled

    def keep(self, cache: ContextCache) -> None:
        """Begin to make a cache ready, where it is to be and is not."""
        cache_id = cache.id
        if cache_id in self._held or cache_id in self._keeping or self._is_stopping:
            return
        if cache.status(self.now) in ("pending", "ready"):
            task = asyncio.create_task(self._make_ready(cache_id), name=f"keep {cache_id}")
            self._keeping[cache_id] = task
            task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._keeping = {name: other for name, other in self._keeping.items() if other is not task}
        if not task.cancelled() and task.exception() is not None:
            logger.error("a context cache could not be made ready; trying again", exc_info=task.exception())

    async def _make_ready(self, cache_id: str) -> None:
        """Compute a cache's prefix and keep it. What may succeed later is left to the next sweep."""
        async with self._turn:
            cache = await asyncio.to_thread(self._store.get, cache_id)
            content = await asyncio.to_thread(self._store.content, cache_id)
            if cache is None or content is None or cache.status(self.now) not in ("pending", "ready"):
                return
            try:
                prefix = Prefix.read(content)
                pin = await self._pinner.pin_prefix(prefix.request(cache.model))
            except (OverloadedError, BackendError) as error:
                logger.warning("%s is not ready yet: %s", cache_id, error)
                return
            except CompleterError as error:
                await self._fail(cache_id, error)
                return
            kept = False
            try:
                kept = await self._note_ready(cache_id, Held(content=content, prefix=prefix, pin=pin))
            finally:
                if not kept:
                    pin.release()

    async def _note_ready(self, cache_id: str, held: Held) -> bool:
        """Charge a cache's creation and its first minute. Returns False where it was deleted or expired meanwhile."""
        async with self.changing:
            cache = await asyncio.to_thread(self._store.get, cache_id)
            now = self.now
            if cache is None or cache.status(now) not in ("pending", "ready"):
                return False
            await self._ledger.charge_owner(
                cache.owner,
                kind="cache_creation",
                model=cache.model,
                quantity=cache.tokens,
                ref=f"{cache_id}:creation",
            )
            since = now if cache.stored_since is None else cache.stored_since
            ready = replace(cache, stored_status="ready", failure=None, stored_since=since)
            await asyncio.to_thread(self._store.update, ready)
            await self.settle(ready)
            self._held[cache_id] = held
            return True

    async def _fail(self, cache_id: str, error: CompleterError) -> None:
        logger.warning("%s cannot be kept: %s", cache_id, error)
        failure = CacheFailure(type=api_error_of(error).code or "cache_failed", message=str(error))
        await self._change(cache_id, lambda cache: replace(_ended(cache), stored_status="error", failure=failure))

    def release(self, cache_id: str) -> None:
        """Let a cache's prefix go, made or in the making."""
        held = self._held.pop(cache_id, None)
        if held is not None:
            held.pin.release()
        task = self._keeping.get(cache_id)
        if task is not None:
            task.cancel()


def _ended(cache: ContextCache) -> ContextCache:
    """With its storage over, and no minute more than is charged."""
    return replace(cache, stored_since=None, minutes_before=cache.minutes_charged)


def _revived(cache: ContextCache) -> ContextCache:
    """No longer inactive."""
    return replace(cache, stored_status="pending") if cache.stored_status == "inactive" else cache
