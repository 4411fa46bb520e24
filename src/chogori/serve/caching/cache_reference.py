"""How a chat request names a cache: by a first message of role `cache`, or by headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from chogori.serve.api_errors import ApiError

CACHE_HEADER = "x-msh-context-cache"
RESET_TTL_HEADER = "x-msh-context-cache-reset-ttl"
DRY_RUN_HEADER = "x-msh-context-cache-dryrun"
MESSAGE_FIELD = "messages[0].content"
TAG = r"[A-Za-z][A-Za-z0-9_.\-]{0,127}"
"""A tag's name."""
_SECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheReference:
    """Which cache, and what to do with it."""

    cache_id: str | None = None
    tag: str | None = None
    reset_ttl_s: int | None = None
    """From now, where the request hits the cache, or where it has expired."""
    is_dry_run: bool = False
    """Only say whether the cache would be hit."""


def reference_of_message(content: object) -> CacheReference:
    """Read `cache_id=ID` or `tag=NAME`, with `;reset_ttl=SECONDS` and `;dry_run=1`. Raises the 400 of anything else."""
    if not isinstance(content, str):
        raise _bad(f"it is {type(content).__name__}, expected text", MESSAGE_FIELD)
    options: dict[str, str] = {}
    for part in content.split(";"):
        name, separator, value = part.partition("=")
        if not separator or not value or name in options or name not in ("cache_id", "tag", "reset_ttl", "dry_run"):
            raise _bad(f"{part!r} was not understood", MESSAGE_FIELD)
        options[name] = value
    if ("cache_id" in options) == ("tag" in options):
        raise _bad("expected either cache_id or tag", MESSAGE_FIELD)
    return CacheReference(
        cache_id=options.get("cache_id"),
        tag=options.get("tag"),
        reset_ttl_s=_seconds(options.get("reset_ttl"), "reset_ttl", MESSAGE_FIELD),
        is_dry_run=_flag(options.get("dry_run"), "dry_run", MESSAGE_FIELD),
    )


def reference_of_headers(headers: Mapping[str, str]) -> CacheReference | None:
    """What the headers name, None where they name no cache. Raises the 400 of values that cannot be."""
    cache_id = headers.get(CACHE_HEADER)
    if cache_id is None:
        return None
    return CacheReference(
        cache_id=cache_id,
        reset_ttl_s=_seconds(headers.get(RESET_TTL_HEADER), RESET_TTL_HEADER, None),
        is_dry_run=_flag(headers.get(DRY_RUN_HEADER), DRY_RUN_HEADER, None),
    )


def _seconds(value: str | None, name: str, field: str | None) -> int | None:
    if value is None:
        return None
    if not _SECONDS.fullmatch(value) or not int(value):
        raise _bad(f"{name} is {value!r}; expected whole seconds, at least 1", field)
    return int(value)


def _flag(value: str | None, name: str, field: str | None) -> bool:
    if value not in (None, "0", "1"):
        raise _bad(f"{name} is {value!r}; expected 0 or 1", field)
    return value == "1"


def _bad(words: str, field: str | None) -> ApiError:
    hint = 'a message of role "cache" holds cache_id=ID or tag=NAME, then ;reset_ttl=SECONDS and ;dry_run=1 if wanted'
    message = f"{field}: {words}; {hint}" if field else words
    return ApiError(message, status=400, field=field, code="invalid_cache_reference")
