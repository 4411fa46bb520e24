"""Bodies and responses of `/v1/caching`, in Moonshot's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chogori.serve.caching.cache_reference import TAG
from chogori.serve.caching.cache_store import Tag
from chogori.serve.caching.context_cache import CacheContent, ContextCache, Status
from chogori.serve.caching.context_caching import Lifetime
from chogori.serve.openai.chat_request import Messages, Tools
from chogori.serve.openai.parameters import Whole

STRICT = ConfigDict(strict=True, extra="forbid")
# No database of ours keeps a NUL in text.
_SHORT = r"^[^\x00]*$"
TagName = Annotated[str, Field(pattern=f"^{TAG}$")]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Seconds = Annotated[int, Field(ge=1, le=2**31 - 1), Whole]
UnixTime = Annotated[int, Field(ge=0, le=2**40), Whole]


class CacheLifetime(BaseModel):
    """How long a cache lives: `ttl` or `expired_at`, not both."""

    model_config = STRICT
    ttl: Seconds | None = Field(None, description="Seconds from now.")
    expired_at: UnixTime | None = Field(None, description="Unix time in seconds; 0 is as if left out.")

    @property
    def lifetime(self) -> Lifetime:
        """As the caches take it."""
        return Lifetime(ttl_s=self.ttl, expires_at=self.expired_at)


class CreateCacheRequest(CacheLifetime):
    """A cache to make."""

    model: str | None = Field(None, description="A served model or an alias; the first one when left out.")
    messages: Messages
    tools: Tools | None = None
    name: Annotated[str, Field(max_length=256, pattern=_SHORT)] | None = None
    description: Annotated[str, Field(max_length=512, pattern=_SHORT)] | None = None
    metadata: Metadata | None = None
    tags: Annotated[list[TagName], Field(max_length=16)] | None = Field(
        None, description="Names for the cache; each leaves the cache that had it."
    )


class UpdateCacheRequest(CacheLifetime):
    """What of a cache may change; what is left out stays."""

    metadata: Metadata | None = None


class TagRequest(BaseModel):
    """A tag to give, or to move."""

    model_config = STRICT
    tag: TagName
    cache_id: str


class CacheError(BaseModel):
    """Why a prefix could not be kept."""

    type: str
    message: str


class CacheObject(BaseModel):
    """A context cache."""

    id: str
    object: Literal["context-cache"] = "context-cache"
    status: Status
    created_at: int
    expired_at: int
    tokens: int
    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    name: str
    description: str
    metadata: dict[str, str]
    tags: list[str]
    error: CacheError | None = None

    @classmethod
    def of(cls, cache: ContextCache, content: CacheContent, status: Status, tags: list[str]) -> CacheObject:
        """A cache as the API shows it."""
        failure = cache.failure
        return cls(
            id=cache.id,
            status=status,
            created_at=cache.created_at,
            expired_at=cache.expires_at,
            tokens=cache.tokens,
            model=cache.model,
            messages=[dict(message) for message in content.messages],
            tools=[dict(tool) for tool in content.tools],
            name=cache.name,
            description=cache.description,
            metadata=dict(cache.metadata),
            tags=tags,
            error=None if failure is None else CacheError(type=failure.type, message=failure.message),
        )


class CacheList(BaseModel):
    """A page of caches."""

    object: Literal["list"] = "list"
    data: list[CacheObject]


class CacheDeleted(BaseModel):
    """A cache that is gone."""

    id: str
    object: Literal["context_cache_object.deleted"] = "context_cache_object.deleted"
    deleted: Literal[True] = True


class TagObject(BaseModel):
    """A tag."""

    tag: str
    cache_id: str
    object: Literal["cache_object.tag"] = "cache_object.tag"
    owned_by: str
    created_at: int

    @classmethod
    def of(cls, tag: Tag) -> TagObject:
        """A tag as the API shows it."""
        return cls(tag=tag.tag, cache_id=tag.cache_id, owned_by=tag.owner or "everyone", created_at=tag.created_at)


class TagList(BaseModel):
    """A page of tags."""

    object: Literal["list"] = "list"
    data: list[TagObject]


class TagDeleted(BaseModel):
    """A tag that is gone, or never was."""

    tag: str
    object: Literal["cache_object.tag.deleted"] = "cache_object.tag.deleted"
    deleted: Literal[True] = True
