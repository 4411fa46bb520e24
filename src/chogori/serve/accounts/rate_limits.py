"""How much each key asks at the moment, counted in this process: requests that run, and the last minute's."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from chogori.serve.accounts.caller import Caller
from chogori.serve.api_errors import ApiError

WINDOW_S = 60.0
RATE_LIMITED = "rate_limit_exceeded"
NO_CREDIT = "insufficient_quota"
"""OpenAI's codes; Moonshot's types go by them."""


@dataclass(slots=True)
class _Window:
    """Amounts of the last minute."""

    amounts: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    total: int = 0

    def add(self, now: float, amount: int) -> None:
        self.amounts.append((now, amount))
        self.total += amount

    def expire(self, now: float) -> None:
        while self.amounts and self.amounts[0][0] <= now - WINDOW_S:
            self.total -= self.amounts.popleft()[1]

    def free_in_s(self, now: float, limit: int) -> float:
        """Until the total is below `limit`."""
        total = self.total
        for then, amount in self.amounts:
            if total < limit:
                break
            total -= amount
            if total < limit:
                return then + WINDOW_S - now
        return 0.0


@dataclass(slots=True)
class _KeyUse:
    running: int = 0
    requests: _Window = field(default_factory=_Window)
    tokens: _Window = field(default_factory=_Window)

    def is_idle(self, now: float) -> bool:
        self.requests.expire(now)
        self.tokens.expire(now)
        return not self.running and not self.requests.amounts and not self.tokens.amounts


class RateLimits:
    """Admits requests within their keys' limits. A refused request does not count."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _KeyUse] = {}
        self._swept_at = clock()

    @contextlib.contextmanager
    def admitted(self, caller: Caller, *, is_charged: bool) -> Generator[None]:
        """Count a request as running for the length of the block. Raises the 429 of one that is too many.

        `is_charged`: whether it consumes tokens and credit, so that having none left refuses it.
        """
        if caller.key_id is None:
            yield
            return
        if is_charged and not caller.has_credit:
            raise ApiError(
                "the credit of this key is used up; its owner can give it more",
                status=429,
                code=NO_CREDIT,
            )
        now = self._clock()
        self._sweep(now)
        use = self._uses.setdefault(caller.key_id, _KeyUse())
        use.requests.expire(now)
        use.tokens.expire(now)
        self._require_room(caller, use, now, is_charged)
        use.requests.add(now, 1)
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1

    def count_tokens(self, caller: Caller, amount: int) -> None:
        """Tokens that a caller's request has consumed."""
        if caller.key_id is not None and amount:
            self._uses.setdefault(caller.key_id, _KeyUse()).tokens.add(self._clock(), amount)

    def headers(self, caller: Caller) -> dict[str, str]:
        """`x-ratelimit-*` as OpenAI has them, for the limits that a key has."""
        limits = caller.limits
        use = self._uses.get(caller.key_id or "", _KeyUse())
        now = self._clock()
        headers: dict[str, str] = {}
        for name, limit, window in (
            ("requests", limits.requests_per_minute, use.requests),
            ("tokens", limits.tokens_per_minute, use.tokens),
        ):
            if limit is not None:
                window.expire(now)
                oldest = window.amounts[0][0] if window.amounts else now - WINDOW_S
                headers[f"x-ratelimit-limit-{name}"] = str(limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - window.total))
                headers[f"x-ratelimit-reset-{name}"] = f"{max(0.0, oldest + WINDOW_S - now):.3g}s"
        return headers

    @staticmethod
    def _require_room(caller: Caller, use: _KeyUse, now: float, is_charged: bool) -> None:
        limits = caller.limits
        if limits.concurrent_requests is not None and use.running >= limits.concurrent_requests:
            raise _too_many(f"{use.running} requests of this key are running", limits.concurrent_requests, "", 1.0)
        if limits.requests_per_minute is not None and use.requests.total >= limits.requests_per_minute:
            wait_s = use.requests.free_in_s(now, limits.requests_per_minute)
            raise _too_many("this key has sent its requests", limits.requests_per_minute, " a minute", wait_s)
        if is_charged and limits.tokens_per_minute is not None and use.tokens.total >= limits.tokens_per_minute:
            wait_s = use.tokens.free_in_s(now, limits.tokens_per_minute)
            raise _too_many("this key has used its tokens", limits.tokens_per_minute, " a minute", wait_s)

    def _sweep(self, now: float) -> None:
        """Forget keys that have been idle for a minute."""
        if now - self._swept_at >= WINDOW_S:
            self._swept_at = now
            self._uses = {key_id: use for key_id, use in self._uses.items() if not use.is_idle(now)}


def _too_many(what: str, limit: int, unit: str, wait_s: float) -> ApiError:
    seconds = max(1, math.ceil(wait_s))
    return ApiError(
        f"{what}; allowed are {limit}{unit}. Please try again in {seconds} s",
        status=429,
        code=RATE_LIMITED,
        headers={"retry-after": str(seconds)},
    )
