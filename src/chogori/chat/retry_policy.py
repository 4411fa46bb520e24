"""When to ask a server again: exponential backoff with full jitter, and what the server itself says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from chogori.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and after how long a request is sent again that got no answer at all."""

    max_retries: int = 4
    """Times that a request is sent again; 0 for never."""
    first_wait_s: float = 0.5
    """Longest wait before the first retry; it doubles for each further one (as OpenAI's own client has it)."""
    max_wait_s: float = 8.0
    """The longest wait of our own choosing."""
    max_server_wait_s: float = 60.0
    """The longest that a server's Retry-After is honoured; a server that wants more is not asked again."""

    def __post_init__(self) -> None:
        for name in ("max_retries", "first_wait_s", "max_wait_s", "max_server_wait_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 0")

    def wait_s(self, num_failures: int, retry_after_s: float | None, random_source: random.Random) -> float | None:
        """How long to wait after so many failures in a row; None to give up.

        Full jitter: anything between nothing and the limit is as likely, so that clients that failed together do not
        come back together. To what a server asks for, only the first retry's jitter is added.
        """
        if num_failures > self.max_retries:
            return None
        if retry_after_s is None:
            return random_source.uniform(0, min(self.max_wait_s, self.first_wait_s * 2 ** (num_failures - 1)))
        if retry_after_s > self.max_server_wait_s:
            return None
        return retry_after_s + random_source.uniform(0, self.first_wait_s)


def retry_after_s(headers: Mapping[str, str], clock: Callable[[], float]) -> float | None:
    """Seconds that a reply asks to wait; None where it does not say or cannot be read. `clock` gives Unix time.

    `retry-after-ms` is OpenAI's own; `retry-after` is seconds or a date (RFC 9110, §10.2.3).
    """
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            wait_s = float(milliseconds) / 1000
        elif value is None:
            return None
        elif value.strip()[:1].isdigit():
            wait_s = float(value)
        else:
            wait_s = parsedate_to_datetime(value).timestamp() - clock()
    except (ValueError, OverflowError):
        return None
    return max(0.0, wait_s) if math.isfinite(wait_s) else None
