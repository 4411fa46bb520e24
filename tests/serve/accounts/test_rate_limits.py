from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.serve.accounts.caller import ANYBODY, Caller, KeyLimits
from chogori.serve.accounts.rate_limits import WINDOW_S, RateLimits
from chogori.serve.api_errors import ApiError


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def caller(credit: int | None = None, spent: int = 0, **limits: int) -> Caller:
    return Caller(
        key_id="k",
        name="Ada",
        scopes=frozenset({"chat"}),
        limits=KeyLimits(**limits),
        credit_picousd=credit,
        spent_picousd=spent,
    )


def refusal(limits: RateLimits, who: Caller, *, is_charged: bool = True) -> ApiError | None:
    try:
        with limits.admitted(who, is_charged=is_charged):
            return None
    except ApiError as error:
        return error


def test_concurrent_requests_are_let_in_as_others_end() -> None:
    limits, who = RateLimits(clock=Clock()), caller(concurrent_requests=2)
    with limits.admitted(who, is_charged=True):
        with limits.admitted(who, is_charged=True):
            refused = refusal(limits, who)
            assert refused is not None
            assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
            assert refused.message == "2 requests of this key are running; allowed are 2. Please try again in 1 s"
        assert refusal(limits, who) is None
    with contextlib.suppress(RuntimeError), limits.admitted(who, is_charged=True):
        raise RuntimeError
    assert refusal(limits, who) is None


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.integers(1, 5))
def test_no_minute_has_more_requests_than_allowed_and_none_is_refused_too_early(
    gaps: list[float], allowed: int
) -> None:
    """Against the definition: a request is admitted exactly if fewer than `allowed` were in the minute before it."""
    clock = Clock()
    limits, who = RateLimits(clock=clock), caller(requests_per_minute=allowed)
    admitted: list[float] = []
    for gap in gaps:
        clock.now += gap
        refused = refusal(limits, who)
        recent = [then for then in admitted if then > clock.now - WINDOW_S]
        assert (refused is None) == (len(recent) < allowed)
        if refused is None:
            admitted.append(clock.now)
            continue
        # Who waits as long as it was told is let in.
        wait_s = int(refused.headers["retry-after"])
        assert len([then for then in admitted if then > clock.now + wait_s - WINDOW_S]) < allowed


def test_used_tokens_refuse_what_would_use_more_until_a_minute_has_passed() -> None:
    clock = Clock()
    limits, who = RateLimits(clock=clock), caller(tokens_per_minute=100)
    limits.count_tokens(who, 60)
    assert refusal(limits, who) is None
    clock.now += 10
    limits.count_tokens(who, 60)
    refused = refusal(limits, who)
    assert refused is not None
    assert refused.headers["retry-after"] == "50"
    assert limits.headers(who) == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "50s",
    }
    assert refusal(limits, who, is_charged=False) is None, "to ask for the models is still allowed"
    clock.now += 50
    assert refusal(limits, who) is None
    assert limits.headers(who)["x-ratelimit-remaining-tokens"] == "40"


@pytest.mark.parametrize(("spent", "is_charged", "is_let_in"), [(9, True, True), (10, True, False), (11, False, True)])
def test_without_credit_nothing_that_costs_is_let_in(spent: int, is_charged: bool, is_let_in: bool) -> None:
    refused = refusal(RateLimits(), caller(credit=10, spent=spent), is_charged=is_charged)
    assert (refused is None) == is_let_in
    if refused is not None:
        assert (refused.status, refused.code) == (429, "insufficient_quota")


def test_anybody_on_an_open_server_has_no_limits() -> None:
    limits = RateLimits()
    with limits.admitted(ANYBODY, is_charged=True):
        assert refusal(limits, ANYBODY) is None
    assert limits.headers(ANYBODY) == {}


def test_keys_that_are_idle_are_forgotten() -> None:
    clock = Clock()
    limits = RateLimits(clock=clock)
    for i in range(100):
        who = Caller(key_id=f"{i}", name="", scopes=frozenset())
        with limits.admitted(who, is_charged=True):
            pass
    clock.now += WINDOW_S + 1
    assert refusal(limits, caller()) is None
    assert set(limits._uses) == {"k"}
