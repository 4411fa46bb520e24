"""How long prefixes may be stored, and how many."""

from __future__ import annotations

from dataclasses import dataclass

from chogori.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CachingSettings:
    """Settings of context caching. The defaults are Moonshot's, where it publishes them."""

    default_ttl_s: int = 3_600
    """How long a cache lives whose maker does not say."""
    max_ttl_s: int = 3_600
    """Longest that a cache may live from the request that makes or renews it."""
    max_tokens_per_key: int = 1_000_000
    """Most tokens that the caches of one key hold together."""
    keep_expired_s: int = 86_400
    """How long an expired cache can still be renewed before it is forgotten."""
    sweep_s: float = 5.0
    """How often started minutes are charged and expired prefixes let go, besides whenever a cache is used."""

    def __post_init__(self) -> None:
        for name in ("default_ttl_s", "max_ttl_s", "max_tokens_per_key"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _check("default_ttl_s", self.default_ttl_s, self.default_ttl_s <= self.max_ttl_s, "at most caching.max_ttl_s")
        _check("keep_expired_s", self.keep_expired_s, self.keep_expired_s >= 0, "0 or more seconds")
        _check("sweep_s", self.sweep_s, self.sweep_s > 0, "more than 0 seconds")


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"caching.{name} is {value!r}; expected {expected}")
