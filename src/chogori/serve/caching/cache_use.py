"""A chat request that names a cache: its messages filled in, and its answer metered as one that hit or did not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

from fastapi import Request

from chogori.chat.completer import ChatRequest, Completer, Event, Started, TextRequest, Usage
from chogori.serve.accounts.caller import caller_of
from chogori.serve.api_errors import ApiError
from chogori.serve.caching.cache_reference import CacheReference, reference_of_headers, reference_of_message
from chogori.serve.caching.context_cache import ContextCache
from chogori.serve.caching.context_caching import ContextCaching, Lifetime
from chogori.serve.openai.chat_request import ChatCompletionRequest

ID_HEADER = "msh-context-cache-id"
SAVED_HEADER = "msh-context-cache-token-saved"
EXPIRY_HEADER = "msh-context-cache-token-exp"
CACHE_ROLE = "cache"


@dataclass(frozen=True, kw_only=True)
class NamedCache:
    """The cache that a request names, before it is known whether it is hit."""

    reference: CacheReference
    cache: ContextCache
    body: ChatCompletionRequest
    """The request as if no message of role `cache` had been in it."""


@dataclass(frozen=True, kw_only=True)
class CacheHit:
    """A conversation that goes on from a cache that is ready."""

    caching: ContextCaching
    cache: ContextCache
    new_expiry: int | None
    """When the cache is to expire once the request is answered; None for as before."""
    request_id: str

    @property
    def headers(self) -> dict[str, str]:
        """What the response says of it, in Moonshot's words."""
        expires_at = self.cache.expires_at if self.new_expiry is None else self.new_expiry
        return {
            ID_HEADER: self.cache.id,
            SAVED_HEADER: str(self.cache.tokens),
            EXPIRY_HEADER: str(expires_at),
        }

    def through(self, completer: Completer) -> Completer:
        """A Completer whose answer is metered as one from the cache."""
        return _FromCache(completer, self)


class _FromCache:
    """Charges the call when the answer begins, and counts the cache's tokens as cached, whatever is read again."""

    def __init__(self, completer: Completer, hit: CacheHit) -> None:
        self._completer = completer
        self._hit = hit

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        hit = self._hit
        # A Completer's iterator is closed to cancel it, so it is a generator or behaves as one.
        async with aclosing(cast(AsyncGenerator[Event], self._completer.stream(request))) as events:
            async for event in events:
                match event:
                    case Started():
                        await hit.caching.keeper.used(hit.cache, expires_at=hit.new_expiry, request_id=hit.request_id)
                        yield replace(event, cached_tokens=self._cached(event))
                    case Usage():
                        yield replace(event, cached_tokens=self._cached(event))
                    case _:
                        yield event

    def _cached(self, event: Started | Usage) -> int:
        return min(max(event.cached_tokens, self._hit.cache.tokens), event.prompt_tokens)


def owner_of(request: Request) -> str:
    """Whose caches a request may see: its key's, or everybody's where the server asks for no key."""
    return caller_of(request).key_id or ""


async def named_cache(
    caching: ContextCaching, owner: str, body: ChatCompletionRequest, headers: Mapping[str, str]
) -> NamedCache | None:
    """The cache that a request names; None where it names none.

    Raises ApiError: 400 for a reference that cannot be read or two of them, 404 for a cache that is not there.
    """
    reference = reference_of_headers(headers)
    first = body.messages[0]
    if any(message.get("role") == CACHE_ROLE for message in body.messages[1:]):
        raise ApiError(
            "a message of role cache is not the first; expected it before all others",
            status=400,
            field="messages",
            code="invalid_cache_reference",
        )
    if first.get("role") != CACHE_ROLE:
        if reference is None:
            return None
        return NamedCache(reference=reference, cache=await caching.find(owner, reference), body=body)
    if reference is not None:
        raise ApiError(
            "a cache is named by a header and by the first message; expected one of them", status=400, field="messages"
        )
    if body.tools is not None:
        raise ApiError(
            "tools is given beside a message of role cache, whose cache has its own; expected null",
            status=400,
            field="tools",
        )
    reference = reference_of_message(first.get("content"))
    cache = await caching.find(owner, reference)
    content = await caching.content(cache)
    filled: dict[str, object] = {
        "messages": [*map(dict, content.messages), *body.messages[1:]],
        "tools": [*map(dict, content.tools)] or None,
    }
    if caching.keeper.status(cache) != "inactive":
        filled["model"] = body.model or cache.model
    return NamedCache(reference=reference, cache=cache, body=body.model_copy(update=filled))


async def hit_of(caching: ContextCaching, named: NamedCache, asked: ChatRequest, *, request_id: str) -> CacheHit | None:
    """Whether a request hits the cache it names. One that has expired is made ready again, where that is asked for."""
    ttl_s = named.reference.reset_ttl_s
    lifetime = None if ttl_s is None else Lifetime(ttl_s=ttl_s)
    if await caching.keeper.is_hit(named.cache, asked):
        new_expiry = None if lifetime is None else caching.expiry(lifetime)
        return CacheHit(caching=caching, cache=named.cache, new_expiry=new_expiry, request_id=request_id)
    if lifetime is not None and not named.reference.is_dry_run and caching.keeper.status(named.cache) == "expired":
        await caching.renew(named.cache.owner, named.cache.id, lifetime=lifetime)
    return None
