"""Minutes that have started, against counting them one by one."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chogori.serve.caching.context_cache import ContextCache
from chogori.serve.caching.storage_minutes import started_minutes

times = st.integers(0, 2_000)


def counted(since: int, until: int, now: int) -> int:
    """A minute starts every 60 seconds from `since`, as long as it is before `until`."""
    return sum(1 for start in range(since, until, 60) if start <= now)


@given(since=times, length=st.integers(-100, 1_000), now=times)
def test_minutes_are_those_that_started(since: int, length: int, now: int) -> None:
    assert started_minutes(since, since + length, now) == counted(since, since + length, now)


def test_a_started_minute_counts_whole() -> None:
    assert [started_minutes(0, 3600, now) for now in (-1, 0, 59, 60, 119, 120)] == [0, 1, 1, 2, 2, 3]
    assert [started_minutes(0, until, 10_000) for until in (0, 1, 60, 61, 3600)] == [0, 1, 1, 2, 60]


@given(
    lifetimes=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 300)), min_size=1, max_size=4),
    looks=st.lists(st.integers(0, 3_000), max_size=12),
)
def test_whenever_it_is_settled_each_minute_is_charged_once_and_none_is_left_out(
    lifetimes: list[tuple[int, int]], looks: list[int]
) -> None:
    """Over several lives of a cache, with pauses between them, looked at by chance."""
    charged: list[int] = []
    expected = 0
    cache = ContextCache(id="c", owner="", model="m", created_at=0, expires_at=0, tokens=1)
    start = 0

    def settle(cache: ContextCache, now: int) -> ContextCache:
        settled = cache.settled(now)
        charged.extend(range(cache.minutes_charged, settled.minutes_charged))
        assert settled.settled(now) == settled
        return settled

    for ttl, pause in lifetimes:
        cache = replace(cache, stored_status="ready", stored_since=start, expires_at=start + ttl)
        for look in sorted(look for look in looks if start <= look < start + ttl + pause):
            cache = settle(cache, look)
        start += ttl + pause
        cache = settle(cache, start)
        expected += counted(start - ttl - pause, start - pause, start)
    assert charged == list(range(expected))
