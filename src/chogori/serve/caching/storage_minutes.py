"""Minutes of storage: a minute that has started counts whole."""

from __future__ import annotations

MINUTE_S = 60


def started_minutes(since: int, until: int, now: int) -> int:
    """Minutes of the time from `since` up to, and without, `until` that have started by `now`; all in seconds.

    The first starts at once. From 0 until 60 there is one, from 0 until 61 there are two.
    """
    last = min(now, until - 1)
    return 0 if last < since else (last - since) // MINUTE_S + 1
