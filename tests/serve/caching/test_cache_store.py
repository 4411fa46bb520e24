"""Cache objects and tags in both kinds of database: what goes in comes out, and only what was meant is changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from chogori.serve.accounts.database import Database
from chogori.serve.accounts.keys import KeyStore
from chogori.serve.caching.cache_store import CacheStore, Page, Tag
from chogori.serve.caching.context_cache import CacheContent, CacheFailure, ContextCache

TEXT = 'Nul \0, half \x85, 山, 🏔, \\u0000, "quotes"'
CACHE = ContextCache(
    id="cache-1",
    owner="ana",
    model="kimi",
    name="Name",
    description="山",
    metadata={"k\0": TEXT},
    created_at=2_000_000_000,
    expires_at=4_000_000_000,  # past what 32 bits hold
    tokens=7,
)
CONTENT = CacheContent(messages=[{"role": "user", "content": TEXT}], tools=[{"type": "function", "n": 1.5}])


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database.open(url)
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> CacheStore:
    return CacheStore(database)


def test_what_goes_in_comes_out(store: CacheStore) -> None:
    store.add(CACHE, CONTENT, ["docs", "more"])
    assert store.get("cache-1") == CACHE
    assert store.content("cache-1") == CONTENT
    assert store.tags_of("cache-1") == ["docs", "more"]
    assert (store.get("cache-2"), store.content("cache-2"), store.get_tag("ana", "no")) == (None, None, None)


def test_what_can_change_changes_and_nothing_else(store: CacheStore) -> None:
    store.add(CACHE, CONTENT)
    changed = replace(
        CACHE,
        metadata={"a": "b"},
        expires_at=5_000_000_000,
        stored_status="error",
        failure=CacheFailure(type="cache_full", message="full"),
        stored_since=3_000_000_000,
        minutes_before=3,
        minutes_charged=5,
    )
    assert store.update(replace(changed, name="Other", tokens=99))
    assert store.get("cache-1") == changed
    assert not store.update(replace(CACHE, id="cache-2"))


def test_a_tag_names_one_cache_of_its_owner_and_goes_with_it(store: CacheStore) -> None:
    store.add(CACHE, CONTENT, ["docs"])
    store.add(replace(CACHE, id="cache-2"), CONTENT, ["docs", "new"])
    store.add(replace(CACHE, id="cache-3", owner="ben"), CONTENT, ["docs"])
    assert store.tags_of("cache-1") == []
    assert [tag.tag for tag in store.list_tags("ana", Page())] == ["new", "docs"]
    with pytest.raises(KeyError):
        store.tag(Tag(owner="ana", tag="docs", cache_id="cache-9", created_at=1))
    store.delete("cache-2")
    assert store.list_tags("ana", Page()) == []
    assert store.get_tag("ben", "docs") == Tag(owner="ben", tag="docs", cache_id="cache-3", created_at=2_000_000_000)


def test_only_living_caches_count_for_their_owner(store: CacheStore) -> None:
    store.add(CACHE, CONTENT)
    store.add(replace(CACHE, id="cache-2", tokens=30), CONTENT)
    store.add(replace(CACHE, id="cache-3", tokens=100, stored_status="error"), CONTENT)
    store.add(replace(CACHE, id="cache-4", tokens=100, expires_at=50), CONTENT)
    store.add(replace(CACHE, id="cache-5", tokens=100, owner="ben"), CONTENT)
    assert (store.tokens_of("ana", 50), store.tokens_of("nobody", 0)) == (37, 0)


def test_caches_of_revoked_and_expired_keys_are_told(store: CacheStore, database: Database) -> None:
    keys = KeyStore(database, b"0" * 32, clock=lambda: 1_000.0)
    open_, revoked, expiring = (
        keys.create(n, scopes=["chat"], lifetime_s=s) for n, s in (("a", None), ("b", None), ("c", 60))
    )
    for number, key in enumerate((open_, revoked, expiring)):
        store.add(replace(CACHE, id=f"cache-{number}", owner=key.record.id), CONTENT)
    store.add(replace(CACHE, id="cache-9", owner=""), CONTENT)
    assert store.of_closed_keys(1_059.0) == set()
    keys.revoke(revoked.record.id)
    assert store.of_closed_keys(1_059.0) == {"cache-1"}
    assert store.of_closed_keys(1_060.0) == {"cache-1", "cache-2"}
