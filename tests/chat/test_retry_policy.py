"""Waits grow, are spread, are bounded, and end; what a server asks for is honoured up to a limit."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.retry_policy import RetryPolicy, retry_after_s
from chogori.errors import ConfigError


class Recorded(random.Random):
    """Draws the upper end, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.asked.append((a, b))
        return b


def test_the_longest_wait_doubles_up_to_its_bound_and_jitter_is_full() -> None:
    source = Recorded()
    policy = RetryPolicy(max_retries=6, first_wait_s=0.5, max_wait_s=8)
    assert [policy.wait_s(n, None, source) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, None]
    assert all(low == 0 for low, _ in source.asked)


@given(num_failures=st.integers(1, 4), seed=st.integers(0, 99))
def test_no_wait_is_longer_than_the_bound(num_failures: int, seed: int) -> None:
    wait_s = RetryPolicy(max_wait_s=1.5).wait_s(num_failures, None, random.Random(seed))
    assert wait_s is not None
    assert 0 <= wait_s <= 1.5


def test_a_server_is_never_asked_sooner_than_it_said() -> None:
    policy = RetryPolicy(first_wait_s=0.5, max_wait_s=8, max_server_wait_s=60)
    for seed in range(20):
        wait_s = policy.wait_s(1, 30, random.Random(seed))
        assert wait_s is not None
        assert 30 <= wait_s <= 30.5
    assert policy.wait_s(1, 60, Recorded()) == 60.5
    assert policy.wait_s(1, 61, Recorded()) is None
    assert policy.wait_s(5, 1, Recorded()) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "-1"}, 0),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:10 GMT"}, 30),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0),
        ({"retry-after": "later"}, None),
        ({"retry-after": "1e"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "inf"}, None),
        ({"retry-after": "1e400"}, None),
    ],
)
def test_headers_are_read(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, lambda: 100.0) == expected


@pytest.mark.parametrize("name", ["max_retries", "first_wait_s", "max_wait_s", "max_server_wait_s"])
def test_less_than_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -1; expected at least 0"):
        RetryPolicy(**{name: -1})
