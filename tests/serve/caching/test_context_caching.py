"""The life of caches on a clock that stands, over a real database, through kills and restarts."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable
from pathlib import Path

import pytest

from chogori.chat.completer import ChatRequest
from chogori.chat.messages import Message, tools_from_openai
from chogori.errors import BackendError, OverloadedError, PinLimitError
from chogori.serve.api_errors import ApiError
from chogori.serve.caching.cache_reference import CacheReference
from chogori.serve.caching.cache_store import Page
from chogori.serve.caching.context_caching import Lifetime
from tests.serve.caching.conftest import Charge, World, new_cache


def asking(text: str = "harbour", model: str = "kimi-test") -> ChatRequest:
    return ChatRequest(
        messages=[Message(role="system", content=text), Message(role="user", content="When?")], model=model
    )


def test_a_cache_is_pending_until_its_prefix_is_kept_then_ready(world: World) -> None:
    async def scenario() -> None:
        world.prefixes.may_pin = asyncio.Event()
        cache = await world.caching.create("ana", new_cache(ttl_s=600))
        assert (cache.tokens, cache.expires_at) == (7, 1_000_600)
        assert await world.status(cache.id) == "pending"
        assert not world.ledger.charges, "what is not there yet costs nothing"
        world.time += 70
        world.prefixes.may_pin.set()
        await world.keeper.wait_until_kept()
        assert await world.status(cache.id) == "ready"
        assert world.ledger.charges == {
            f"{cache.id}:creation": Charge(owner="ana", kind="cache_creation", model="kimi-test", quantity=7),
            f"{cache.id}:minute:0": Charge(owner="ana", kind="cache_storage", model="kimi-test", quantity=7),
        }

    asyncio.run(scenario())


def test_every_started_minute_is_charged_until_it_expires_and_the_prefix_goes_with_it(world: World) -> None:
    async def scenario() -> None:
        cache_id = await world.make(ttl_s=150)
        for seconds, minutes in ((59, 1), (1, 2), (60, 3), (29, 3)):
            world.time += seconds
            assert await world.sweep() == 1_000_150
            assert world.ledger.count("cache_storage") == minutes
        assert world.prefixes.pinned == {"harbour": 1}
        world.time += 1
        assert await world.sweep() is None
        assert await world.status(cache_id) == "expired"
        assert not world.prefixes.pinned
        world.time += 10_000
        await world.sweep()
        assert world.ledger.count("cache_storage") == 3
        assert world.ledger.count("cache_creation") == 1

    asyncio.run(scenario())


def test_a_kill_anywhere_and_a_long_pause_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """The process dies after each number of charges in turn; another one goes on an hour later."""
    for fails_after in range(9):
        (tmp_path / str(fails_after)).mkdir()
        world = World(tmp_path / str(fails_after), sweep_s=1.0)

        async def scenario(world: World = world, fails_after: int = fails_after) -> None:
            world.ledger.fails_after = fails_after
            cache = await world.caching.create("ana", new_cache(ttl_s=400))
            await world.keeper.wait_until_kept()
            for _ in range(6):
                world.time += 45
                try:
                    await world.sweep()
                except ConnectionError:
                    break
            # Only what is in the database and the ledger outlives the process.
            world.ledger.fails_after = None
            world.boot()
            began = world.ledger.count("cache_creation") == 1
            await world.sweep()
            world.time = 1_003_600
            await world.sweep()
            stored = await world.caching.get("ana", cache.id)
            numbers = sorted(int(ref.rpartition(":")[2]) for ref in world.ledger.charges if ":minute:" in ref)
            assert numbers == list(range(stored.minutes_charged))
            assert world.ledger.count("cache_creation") == 1
            # Ready at once it lives 400 seconds, seven minutes; ready later it is stored for less.
            assert stored.minutes_charged <= 7
            if fails_after >= 1:
                assert began
            if fails_after >= 2:
                assert stored.minutes_charged == 7

        asyncio.run(scenario())
        world.database.close()


def test_after_a_restart_a_cache_is_pending_until_its_prefix_is_kept_again(world: World) -> None:
    async def scenario() -> None:
        cache_id = await world.make(ttl_s=600)
        world.time += 130
        world.boot()
        assert await world.status(cache_id) == "pending"
        cache = await world.caching.get("ana", cache_id)
        assert not await world.keeper.is_hit(cache, asking()), "a request does not wait for it, and is a plain one"
        await world.keeper.wait_until_kept()
        assert await world.status(cache_id) == "ready"
        assert await world.keeper.is_hit(cache, asking())
        assert world.ledger.count("cache_creation") == 1
        assert world.ledger.count("cache_storage") == 3

    asyncio.run(scenario())


def test_deleting_charges_the_started_minute_and_frees_at_once(world: World) -> None:
    async def scenario() -> None:
        cache_id = await world.make(ttl_s=600, tags=["docs"])
        world.time += 61
        await world.caching.delete("ana", cache_id)
        assert not world.prefixes.pinned
        assert world.ledger.count("cache_storage") == 2
        for gone in (world.caching.get("ana", cache_id), world.caching.get_tag("ana", "docs")):
            with pytest.raises(ApiError) as error:
                await gone
            assert error.value.status == 404

    asyncio.run(scenario())


def test_deleting_what_is_still_computed_keeps_nothing(world: World) -> None:
    async def scenario() -> None:
        world.prefixes.may_pin = asyncio.Event()
        cache = await world.caching.create("ana", new_cache())
        await asyncio.sleep(0.05)
        await world.caching.delete("ana", cache.id)
        world.prefixes.may_pin.set()
        await world.keeper.wait_until_kept()
        assert not world.prefixes.pinned
        assert not world.ledger.charges

    asyncio.run(scenario())


def test_what_expires_while_it_is_computed_is_not_kept_nor_charged(world: World) -> None:
    async def scenario() -> None:
        world.prefixes.may_pin = asyncio.Event()
        cache = await world.caching.create("ana", new_cache(ttl_s=10))
        await asyncio.sleep(0.05)
        world.time += 10
        world.prefixes.may_pin.set()
        await world.keeper.wait_until_kept()
        assert await world.status(cache.id) == "expired"
        assert not world.prefixes.pinned
        assert not world.ledger.charges

    asyncio.run(scenario())


def test_an_expired_cache_is_renewed_without_paying_for_the_time_between_nor_its_creation_again(world: World) -> None:
    async def scenario() -> None:
        cache_id = await world.make(ttl_s=60)
        world.time += 1_000
        await world.caching.renew("ana", cache_id, lifetime=Lifetime(ttl_s=120))
        assert await world.status(cache_id) == "pending"
        await world.keeper.wait_until_kept()
        assert await world.status(cache_id) == "ready"
        world.time += 500
        await world.sweep()
        assert world.ledger.count("cache_storage") == 1 + 2
        assert world.ledger.count("cache_creation") == 1

    asyncio.run(scenario())


def test_what_is_forgotten_is_no_longer_there(world: World) -> None:
    async def scenario() -> None:
        cache_id = await world.make(ttl_s=60)
        world.time += 60 + world.settings.keep_expired_s - 1
        await world.sweep()
        assert await world.status(cache_id) == "expired"
        world.time += 1
        await world.sweep()
        with pytest.raises(ApiError, match="no cache has the id"):
            await world.caching.get("ana", cache_id)
        assert world.ledger.count("cache_storage") == 1

    asyncio.run(scenario())


def test_a_prefix_that_cannot_be_kept_says_why_and_costs_nothing(world: World) -> None:
    async def scenario() -> None:
        world.prefixes.errors = [PinLimitError("7 more tokens are to be pinned, beside 0; expected at most 0")]
        cache_id = await world.make()
        cache = await world.caching.get("ana", cache_id)
        assert world.keeper.status(cache) == "error"
        assert cache.failure is not None
        assert (cache.failure.type, cache.failure.message[:7]) == ("cache_full", "7 more ")
        assert not world.ledger.charges
        await world.sweep()
        assert await world.status(cache_id) == "error", "nothing tries again by itself"
        await world.caching.renew("ana", cache_id, lifetime=Lifetime())
        await world.keeper.wait_until_kept()
        assert await world.status(cache_id) == "ready"

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [OverloadedError("busy", retry_after_s=1), BackendError("lost")])
def test_what_may_succeed_later_is_tried_again(world: World, error: Exception) -> None:
    async def scenario() -> None:
        world.prefixes.errors = [error]
        cache_id = await world.make()
        assert await world.status(cache_id) == "pending"
        await world.sweep()
        assert await world.status(cache_id) == "ready"

    asyncio.run(scenario())


def test_a_cache_of_a_model_that_is_not_served_is_inactive_and_costs_nothing_until_it_is_again(world: World) -> None:
    async def scenario() -> None:
        cache_id = await world.make(ttl_s=3600)
        world.boot()
        world.models = {"another"}
        world.time += 600
        await world.sweep()
        assert await world.status(cache_id) == "inactive"
        world.time += 600
        await world.sweep()
        assert world.ledger.count("cache_storage") == 1
        world.models = {"another", "kimi-test"}
        await world.sweep()
        assert await world.status(cache_id) == "ready"
        assert world.ledger.count("cache_storage") == 2

    asyncio.run(scenario())


def test_a_conversation_hits_where_it_goes_on_from_the_cache_with_its_model_and_tools(world: World) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

    async def scenario() -> None:
        cache = await world.caching.get("ana", await world.make())
        assert await world.keeper.is_hit(cache, asking())
        assert not await world.keeper.is_hit(cache, asking("harbor"))
        assert not await world.keeper.is_hit(cache, asking(model="another"))
        tools = tools_from_openai([tool])
        request = ChatRequest(messages=asking().messages, tools=tools, model="kimi-test")
        assert not await world.keeper.is_hit(cache, request)
        unread = ChatRequest(messages=request.messages, tools=tools, tool_choice="none", model="kimi-test")
        assert await world.keeper.is_hit(cache, unread), "the model does not read tools that it must not call"

    asyncio.run(scenario())


def test_a_use_is_charged_once_and_may_set_when_the_cache_expires(world: World) -> None:
    async def scenario() -> None:
        cache = await world.caching.get("ana", await world.make(ttl_s=100))
        world.time += 90
        await world.keeper.used(cache, expires_at=1_000_190, request_id="same")
        await world.keeper.used(cache, expires_at=None, request_id="same")
        assert world.ledger.count("cache_call") == 2, "a client that names its requests alike pays for each"
        assert world.ledger.count("cache_storage") == 2
        assert (await world.caching.get("ana", cache.id)).expires_at == 1_000_190

    asyncio.run(scenario())


def test_owners_see_their_own_caches_and_tags_only(world: World) -> None:
    async def scenario() -> None:
        cache_id = await world.make(tags=["docs"])
        await world.make("other", owner="ben", tags=["docs"])
        for refused in (
            world.caching.get("ben", cache_id),
            world.caching.delete("ben", cache_id),
            world.caching.renew("ben", cache_id, lifetime=Lifetime()),
            world.caching.tag("ben", "mine", cache_id),
            world.caching.find("ben", CacheReference(cache_id=cache_id)),
        ):
            with pytest.raises(ApiError) as error:
                await refused
            assert error.value.status == 404
        assert (await world.caching.find("ana", CacheReference(tag="docs"))).id == cache_id
        assert (await world.caching.find("ben", CacheReference(tag="docs"))).id != cache_id

    asyncio.run(scenario())


def test_a_key_stores_no_more_than_its_share(tmp_path: Path) -> None:
    world = World(tmp_path, max_tokens_per_key=10)

    async def scenario() -> None:
        await world.make("1234567", ttl_s=60)
        with pytest.raises(
            ApiError, match="the cache has 4 tokens and the key's others 7; expected at most 10"
        ) as full:
            await world.make("1234")
        assert full.value.status == 429
        await world.make("1234", owner="ben")
        world.time += 60
        await world.make("1234")

    asyncio.run(scenario())
    world.database.close()


@pytest.mark.parametrize(
    ("lifetime", "message"),
    [
        (Lifetime(ttl_s=3601), "ttl is 3601 seconds; expected 1 to 3600"),
        (
            Lifetime(expires_at=1_000_000),
            "expired_at is 1000000; expected later than now, 1000000, and at most 1003600",
        ),
        (Lifetime(expires_at=1_003_601), "expired_at is 1003601; expected later than now"),
        (Lifetime(ttl_s=5, expires_at=1_000_005), "ttl and expired_at are both given"),
    ],
)
def test_lifetimes_that_cannot_be_are_refused(world: World, lifetime: Lifetime, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        asyncio.run(world.caching.create("ana", new_cache(lifetime=lifetime)))


def test_lists_are_paged_in_both_orders_and_filtered_by_metadata(world: World) -> None:
    async def scenario() -> None:
        ids = [await world.make(str(i), metadata={"parity": str(i % 2), "n": str(i)}) for i in range(7)]

        async def listed(metadata: dict[str, str] | None = None, **page: object) -> list[int]:
            wanted = Page(**page)  # pyright: ignore[reportArgumentType]
            return [ids.index(cache.id) for cache in await world.caching.list("ana", wanted, metadata or {})]

        assert await listed() == [6, 5, 4, 3, 2, 1, 0]
        assert await listed(limit=2) == [6, 5]
        assert await listed(limit=2, after=ids[5]) == [4, 3]
        assert await listed(after=ids[5], before=ids[2]) == [4, 3]
        assert await listed(is_ascending=True, after=ids[4]) == [5, 6]
        assert await listed(is_ascending=True, before=ids[2]) == [0, 1]
        assert await listed({"parity": "1"}, limit=2) == [5, 3]
        assert await listed({"parity": "1", "n": "2"}) == []
        with pytest.raises(ApiError, match="after names nothing in this list"):
            await listed(after="cache-none")
        for i, name in enumerate("abc"):
            await world.caching.tag("ana", name, ids[i])
        await world.caching.tag("ana", "a", ids[6])
        tags = await world.caching.list_tags("ana", Page())
        assert [(tag.tag, ids.index(tag.cache_id)) for tag in tags] == [("a", 6), ("c", 2), ("b", 1)]
        assert [tag.tag for tag in await world.caching.list_tags("ana", Page(limit=1, after="a"))] == ["c"]

    asyncio.run(scenario())


def test_two_servers_over_one_database_charge_each_minute_once_and_follow_each_other(world: World) -> None:
    async def scenario() -> None:
        cache_id = await world.make(ttl_s=600)
        first, prefixes = world.keeper, world.prefixes
        world.boot()
        await world.sweep()
        for _ in range(3):
            world.time += 61
            await asyncio.gather(first.sweep(), world.keeper.sweep())
        assert world.ledger.count("cache_storage") == 4
        assert world.ledger.count("cache_creation") == 1
        assert prefixes.pinned == world.prefixes.pinned == {"harbour": 1}
        await world.caching.delete("ana", cache_id)
        await first.sweep()
        assert not prefixes.pinned
        assert not world.prefixes.pinned

    asyncio.run(scenario())


def test_whatever_happens_in_whatever_order_minutes_have_no_gap_and_pins_have_a_cache(tmp_path: Path, url: str) -> None:
    world = World(tmp_path, url=url, keep_expired_s=300, max_tokens_per_key=10_000)
    dice = random.Random(5)

    async def scenario() -> None:
        ids: list[str] = []
        for step in range(150):
            match dice.randrange(8):
                case 0 | 1:
                    ids.append(await world.make(f"text {step}", ttl_s=dice.randrange(1, 400)))
                case 2 if ids:
                    await _if_there(world.caching.delete("ana", dice.choice(ids)))
                case 3 if ids:
                    lifetime = Lifetime(ttl_s=dice.randrange(1, 400))
                    await _if_there(world.caching.renew("ana", dice.choice(ids), lifetime=lifetime))
                case 4:
                    world.boot()
                case 5 if ids:
                    await _if_there(_use(world, dice.choice(ids)))
                case _:
                    await world.sweep()
            world.time += dice.randrange(100)
        await world.sweep()
        ready = [c.id for c in world.store.everyone() if world.keeper.status(c) == "ready"]
        assert sum(world.prefixes.pinned.values()) == len(ready)
        for cache_id in ids:
            refs = [ref for ref in world.ledger.charges if ref.startswith(f"{cache_id}:minute:")]
            assert sorted(int(ref.rpartition(":")[2]) for ref in refs) == list(range(len(refs)))
            assert f"{cache_id}:creation" in world.ledger.charges

    asyncio.run(scenario())
    world.database.close()


async def _if_there(call: Awaitable[object]) -> None:
    with contextlib.suppress(ApiError):
        await call


async def _use(world: World, cache_id: str) -> None:
    cache = await world.caching.get("ana", cache_id)
    content = await world.caching.content(cache)
    if await world.keeper.is_hit(cache, asking(str(content.messages[0]["content"]))):
        await world.keeper.used(cache, expires_at=None, request_id="r")
