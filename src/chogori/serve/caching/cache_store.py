"""Cache objects and tags in the database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Integer,
    PrimaryKeyConstraint,
    Row,
    RowMapping,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from chogori.serve.accounts.database import Database, metadata
from chogori.serve.accounts.keys import api_key
from chogori.serve.caching.context_cache import CacheContent, CacheFailure, ContextCache, Object

CACHES = Table(
    "context_caches",
    metadata,
    # Whole numbers in the order of creation, which pages are made of.
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("model", Text, nullable=False),
    Column("messages", Text, nullable=False),
    Column("tools", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("failure_type", Text),
    Column("failure_message", Text),
    Column("stored_since", BigInteger),
    Column("minutes_before", Integer, nullable=False),
    Column("minutes_charged", Integer, nullable=False),
)
_STATES = select(*(column for column in CACHES.c if column.name not in ("messages", "tools")))
TAGS = Table(
    "context_cache_tags",
    metadata,
    Column("number", Integer, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("tag", String(128), nullable=False),
    Column("cache_id", String(64), ForeignKey("context_caches.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("owner", "tag"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A name that an owner gave a cache, and may move to another."""

    owner: str
    tag: str
    cache_id: str
    created_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Which part of a list is wanted."""

    limit: int = 20
    is_ascending: bool = False
    after: str | None = None
    """Id or tag behind which to begin."""
    before: str | None = None
    """Id or tag before which to stop."""


class CacheStore:
    """Reads and writes cache objects and tags; every call is one transaction, and blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, cache: ContextCache, content: CacheContent, tags: Sequence[str] = ()) -> None:
        """Store a new cache with its tags, which leave the caches that had them."""
        with self._database.begin() as connection:
            connection.execute(insert(CACHES).values(_values(cache, content)))
            for tag in tags:
                _move_tag(connection, Tag(owner=cache.owner, tag=tag, cache_id=cache.id, created_at=cache.created_at))

    def get(self, cache_id: str) -> ContextCache | None:
        """A cache, whoever owns it."""
        with self._database.read() as connection:
            row = connection.execute(_STATES.where(CACHES.c.id == cache_id)).mappings().one_or_none()
        return None if row is None else _cache(row)

    def content(self, cache_id: str) -> CacheContent | None:
        """What a cache holds; None where it is gone."""
        with self._database.read() as connection:
            wanted = select(CACHES.c.messages, CACHES.c.tools).where(CACHES.c.id == cache_id)
            row = connection.execute(wanted).one_or_none()
        if row is None:
            return None
        messages, tools = (cast(Sequence[Object], json.loads(text)) for text in row)
        return CacheContent(messages=messages, tools=tools)

    def update(self, cache: ContextCache) -> bool:
        """Store what of a cache can change. Returns False where it is gone."""
        with self._database.begin() as connection:
            result = connection.execute(update(CACHES).where(CACHES.c.id == cache.id).values(_changing(cache)))
        return result.rowcount == 1

    def delete(self, cache_id: str) -> None:
        """Remove a cache and its tags."""
        with self._database.begin() as connection:
            connection.execute(delete(TAGS).where(TAGS.c.cache_id == cache_id))
            connection.execute(delete(CACHES).where(CACHES.c.id == cache_id))

    def everyone(self) -> list[ContextCache]:
        """All caches, in the order of their creation."""
        with self._database.read() as connection:
            rows = connection.execute(_STATES.order_by(CACHES.c.number)).mappings().all()
        return [_cache(row) for row in rows]

    def of_closed_keys(self, now: float) -> set[str]:
        """Ids of caches whose key was revoked or has expired."""
        closed = api_key.c.revoked_at.is_not(None) | (api_key.c.expires_at <= now)
        with self._database.read() as connection:
            wanted = select(CACHES.c.id).join(api_key, api_key.c.id == CACHES.c.owner).where(closed)
            return set(connection.execute(wanted).scalars())

    def tokens_of(self, owner: str, now: int) -> int:
        """Tokens of an owner's caches that have not expired."""
        living = (CACHES.c.owner == owner) & (CACHES.c.expires_at > now) & CACHES.c.status.in_(("pending", "ready"))
        with self._database.read() as connection:
            return int(
                connection.execute(select(func.coalesce(func.sum(CACHES.c.tokens), 0)).where(living)).scalar_one()
            )

    def list(self, owner: str, page: Page, metadata: Mapping[str, str]) -> list[ContextCache]:
        """An owner's caches that have these metadata. Raises KeyError for an unknown `after` or `before`."""
        with self._database.read() as connection:
            mine = CACHES.c.owner == owner
            numbers = {name: _number(connection, CACHES, mine & (CACHES.c.id == name)) for name in _ends(page)}
            wanted = _part(_STATES.where(mine), CACHES, page, numbers)
            found: list[ContextCache] = []
            for row in connection.execute(wanted).mappings():
                if metadata.items() <= cast(Mapping[str, str], json.loads(row["metadata"])).items():
                    found.append(_cache(row))
                if len(found) == page.limit:
                    break
        return found

    def tag(self, tag: Tag) -> Tag:
        """Give a cache a tag, or move it there. Raises KeyError where the cache is gone."""
        with self._database.begin() as connection:
            if connection.execute(select(CACHES.c.id).where(CACHES.c.id == tag.cache_id)).one_or_none() is None:
                raise KeyError("no such cache")
            _move_tag(connection, tag)
        return tag

    def get_tag(self, owner: str, tag: str) -> Tag | None:
        """An owner's tag."""
        with self._database.read() as connection:
            row = connection.execute(select(TAGS).where(_is_tag(owner, tag))).one_or_none()
        return None if row is None else _tag(row)

    def tags_of(self, cache_id: str) -> list[str]:
        """Tags of a cache, by name."""
        with self._database.read() as connection:
            wanted = select(TAGS.c.tag).where(TAGS.c.cache_id == cache_id).order_by(TAGS.c.tag)
            return list(connection.execute(wanted).scalars())

    def list_tags(self, owner: str, page: Page) -> list[Tag]:
        """An owner's tags. Raises KeyError for an unknown `after` or `before`."""
        with self._database.read() as connection:
            numbers = {name: _number(connection, TAGS, _is_tag(owner, name)) for name in _ends(page)}
            wanted = _part(select(TAGS).where(TAGS.c.owner == owner), TAGS, page, numbers)
            return [_tag(row) for row in connection.execute(wanted.limit(page.limit))]

    def delete_tag(self, owner: str, tag: str) -> None:
        """Remove a tag, where there is one."""
        with self._database.begin() as connection:
            connection.execute(delete(TAGS).where(_is_tag(owner, tag)))


def _is_tag(owner: str, tag: str) -> Any:
    return (TAGS.c.owner == owner) & (TAGS.c.tag == tag)


def _move_tag(connection: Connection, tag: Tag) -> None:
    connection.execute(delete(TAGS).where(_is_tag(tag.owner, tag.tag)))
    number = int(connection.execute(select(func.coalesce(func.max(TAGS.c.number), 0))).scalar_one()) + 1
    values = {"number": number, "owner": tag.owner, "tag": tag.tag, "cache_id": tag.cache_id}
    connection.execute(insert(TAGS).values({**values, "created_at": tag.created_at}))


def _ends(page: Page) -> list[str]:
    return [name for name in (page.after, page.before) if name is not None]


def _number(connection: Connection, table: Table, condition: Any) -> int:
    number = connection.execute(select(table.c.number).where(condition)).scalar_one_or_none()
    if number is None:
        raise KeyError("no such place in the list")
    return int(number)


def _part(wanted: Any, table: Table, page: Page, numbers: Mapping[str, int]) -> Any:
    """The rows of a page in its order, from behind `after` and up to `before`, not counting either."""
    number = table.c.number
    if page.after is not None:
        wanted = wanted.where(number > numbers[page.after] if page.is_ascending else number < numbers[page.after])
    if page.before is not None:
        wanted = wanted.where(number < numbers[page.before] if page.is_ascending else number > numbers[page.before])
    return wanted.order_by(number.asc() if page.is_ascending else number.desc())


def _changing(cache: ContextCache) -> dict[str, Any]:
    failure = cache.failure
    return {
        "metadata": json.dumps(dict(cache.metadata), ensure_ascii=False),
        "expires_at": cache.expires_at,
        "status": cache.stored_status,
        "failure_type": failure.type if failure else None,
        "failure_message": failure.message if failure else None,
        "stored_since": cache.stored_since,
        "minutes_before": cache.minutes_before,
        "minutes_charged": cache.minutes_charged,
    }


def _values(cache: ContextCache, content: CacheContent) -> dict[str, Any]:
    return {
        "id": cache.id,
        "owner": cache.owner,
        "model": cache.model,
        "messages": json.dumps(list(content.messages), ensure_ascii=False),
        "tools": json.dumps(list(content.tools), ensure_ascii=False),
        "name": cache.name,
        "description": cache.description,
        "created_at": cache.created_at,
        "tokens": cache.tokens,
        **_changing(cache),
    }


def _cache(fields: RowMapping) -> ContextCache:
    failed = fields["failure_type"] is not None
    return ContextCache(
        id=fields["id"],
        owner=fields["owner"],
        model=fields["model"],
        name=fields["name"],
        description=fields["description"],
        metadata=json.loads(fields["metadata"]),
        created_at=fields["created_at"],
        expires_at=fields["expires_at"],
        tokens=fields["tokens"],
        stored_status=fields["status"],
        failure=CacheFailure(type=fields["failure_type"], message=fields["failure_message"]) if failed else None,
        stored_since=fields["stored_since"],
        minutes_before=fields["minutes_before"],
        minutes_charged=fields["minutes_charged"],
    )


def _tag(row: Row[Any]) -> Tag:
    return Tag(owner=row.owner, tag=row.tag, cache_id=row.cache_id, created_at=row.created_at)
