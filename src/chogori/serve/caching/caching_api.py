"""`/v1/caching` and `/v1/caching/refs/tags`, as Moonshot documents them."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Request

from chogori.serve.accounts.caller import caller_of
from chogori.serve.accounts.rate_limits import RateLimits
from chogori.serve.answering import served_model
from chogori.serve.caching.cache_store import Page
from chogori.serve.caching.cache_use import owner_of
from chogori.serve.caching.caching_models import (
    CacheDeleted,
    CacheList,
    CacheObject,
    CreateCacheRequest,
    TagDeleted,
    TagList,
    TagObject,
    TagRequest,
    UpdateCacheRequest,
)
from chogori.serve.caching.context_cache import CacheContent, ContextCache
from chogori.serve.caching.context_caching import ContextCaching, NewCache
from chogori.serve.lifecycle import Lifecycle
from chogori.serve.openai.parameters import require_json
from chogori.serve.openai.response_models import errors

router = APIRouter(tags=["context caching"])
_METADATA = re.compile(r"metadata\[(.*)\]")
_METADATA_PARAMETER: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": "Only caches with these metadata: metadata[key]=value.",
            "schema": {"type": "object", "additionalProperties": True},  # whatever stands in a query is text
        }
    ]
}
WITH_BODY = [Depends(require_json)]
WRITE_ERRORS = errors(400, 404, 413, 415, 429, 500, 502, 503, 504)


def page_of(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    before: str | None = None,
) -> Page:
    """Which part of a list is wanted; `after` and `before` are not part of it."""
    return Page(limit=limit, is_ascending=order == "asc", after=after, before=before)


@router.post("/v1/caching", dependencies=WITH_BODY, responses=WRITE_ERRORS)
async def create_cache(request: Request, body: Annotated[CreateCacheRequest, Body()]) -> CacheObject:
    """Make a cache. It is pending until its prefix is computed, then ready."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    lifecycle.require_ready()
    card = served_model(request, body.model)
    new = NewCache(
        model=card.id,
        context_length=card.context_length,
        content=CacheContent(messages=body.messages, tools=body.tools or []),
        name=body.name or "",
        description=body.description or "",
        metadata=body.metadata or {},
        lifetime=body.lifetime,
        tags=body.tags or [],
    )
    caching = _caching(request)
    cache = await caching.create(owner_of(request), new)
    # They count among the key's tokens per minute, as Moonshot's do.
    limits: RateLimits = request.app.state.rate_limits
    limits.count_tokens(caller_of(request), cache.tokens)
    return await _shown(caching, cache)


@router.get("/v1/caching", responses=errors(400, 404), openapi_extra=_METADATA_PARAMETER)
async def list_caches(request: Request, page: Annotated[Page, Depends(page_of)]) -> CacheList:
    """The key's caches, by default the newest first."""
    caching = _caching(request)
    wanted = {
        found.group(1): value for name, value in request.query_params.items() if (found := _METADATA.fullmatch(name))
    }
    caches = await caching.list(owner_of(request), page, wanted)
    return CacheList(data=[await _shown(caching, cache) for cache in caches])


# Before `/v1/caching/{cache_id}`, which would take `refs` for an id.
@router.post("/v1/caching/refs/tags", dependencies=WITH_BODY, responses=WRITE_ERRORS)
async def create_tag(request: Request, body: Annotated[TagRequest, Body()]) -> TagObject:
    """Give a cache a tag, or move the tag to it."""
    return TagObject.of(await _caching(request).tag(owner_of(request), body.tag, body.cache_id))


@router.get("/v1/caching/refs/tags", responses=errors(400, 404))
async def list_tags(request: Request, page: Annotated[Page, Depends(page_of)]) -> TagList:
    """The key's tags, by default the newest first."""
    tags = await _caching(request).list_tags(owner_of(request), page)
    return TagList(data=[TagObject.of(tag) for tag in tags])


@router.get("/v1/caching/refs/tags/{tag}", responses=errors(404))
async def retrieve_tag(request: Request, tag: str) -> TagObject:
    """Which cache a tag names."""
    return TagObject.of(await _caching(request).get_tag(owner_of(request), tag))


@router.delete("/v1/caching/refs/tags/{tag}")
async def delete_tag(request: Request, tag: str) -> TagDeleted:
    """Remove a tag; that of none succeeds too."""
    await _caching(request).delete_tag(owner_of(request), tag)
    return TagDeleted(tag=tag)


@router.get("/v1/caching/refs/tags/{tag}/content", responses=errors(404))
async def retrieve_tagged_cache(request: Request, tag: str) -> CacheObject:
    """The cache that a tag names."""
    caching, owner = _caching(request), owner_of(request)
    found = await caching.get_tag(owner, tag)
    return await _shown(caching, await caching.get(owner, found.cache_id))


@router.get("/v1/caching/{cache_id}", responses=errors(404))
async def retrieve_cache(request: Request, cache_id: str) -> CacheObject:
    """What is known of a cache."""
    caching = _caching(request)
    return await _shown(caching, await caching.get(owner_of(request), cache_id))


@router.put("/v1/caching/{cache_id}", dependencies=WITH_BODY, responses=WRITE_ERRORS)
async def update_cache(request: Request, cache_id: str, body: Annotated[UpdateCacheRequest, Body()]) -> CacheObject:
    """Change a cache's metadata or how long it lives; one that has expired becomes pending, then ready again."""
    caching = _caching(request)
    is_lifetime_given = body.ttl is not None or bool(body.expired_at)
    lifetime = body.lifetime if is_lifetime_given else None
    cache = await caching.renew(owner_of(request), cache_id, lifetime=lifetime, metadata=body.metadata)
    return await _shown(caching, cache)


@router.delete("/v1/caching/{cache_id}", responses=errors(404))
async def delete_cache(request: Request, cache_id: str) -> CacheDeleted:
    """Let a cache go, with its tags. Its storage ends with the minute that has started."""
    await _caching(request).delete(owner_of(request), cache_id)
    return CacheDeleted(id=cache_id)


def _caching(request: Request) -> ContextCaching:
    caching: ContextCaching = request.app.state.caching
    return caching


async def _shown(caching: ContextCaching, cache: ContextCache) -> CacheObject:
    content = await caching.content(cache)
    tags = await asyncio.to_thread(caching.tags_of, cache)
    return CacheObject.of(cache, content, caching.keeper.status(cache), tags)
