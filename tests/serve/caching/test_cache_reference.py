"""How requests name a cache, and what is refused."""

import pytest

from chogori.serve.api_errors import ApiError
from chogori.serve.caching.cache_reference import CacheReference, reference_of_headers, reference_of_message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("cache_id=cache-1", CacheReference(cache_id="cache-1")),
        ("tag=docs", CacheReference(tag="docs")),
        ("cache_id=a=b;reset_ttl=3600", CacheReference(cache_id="a=b", reset_ttl_s=3600)),
        ("tag=docs;dry_run=1;reset_ttl=5", CacheReference(tag="docs", reset_ttl_s=5, is_dry_run=True)),
        ("tag=docs;dry_run=0", CacheReference(tag="docs")),
    ],
)
def test_a_message_is_read(content: str, expected: CacheReference) -> None:
    assert reference_of_message(content) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "'' was not understood"),
        (None, "it is NoneType, expected text"),
        ([{"type": "text", "text": "tag=a"}], "it is list, expected text"),
        ("cache_id=a;", "'' was not understood"),
        ("cache_id=a;ttl=4", "'ttl=4' was not understood"),
        ("cache_id=a;cache_id=b", "'cache_id=b' was not understood"),
        ("cache_id=a;tag=b", "expected either cache_id or tag"),
        ("reset_ttl=4", "expected either cache_id or tag"),
        ("tag=a;reset_ttl=0", "reset_ttl is '0'; expected whole seconds, at least 1"),
        ("tag=a;reset_ttl=-3", "reset_ttl is '-3'"),
        ("tag=a;reset_ttl=9999999999", "reset_ttl is '9999999999'"),
        ("tag=a;dry_run=yes", "dry_run is 'yes'; expected 0 or 1"),
    ],
)
def test_what_cannot_be_read_is_named(content: object, words: str) -> None:
    with pytest.raises(ApiError) as error:
        reference_of_message(content)
    assert error.value.message.startswith(f"messages[0].content: {words}")
    assert (error.value.status, error.value.field) == (400, "messages[0].content")


def test_headers_are_read() -> None:
    assert reference_of_headers({}) is None
    headers = {
        "x-msh-context-cache": "cache-1",
        "x-msh-context-cache-reset-ttl": "60",
        "x-msh-context-cache-dryrun": "1",
    }
    assert reference_of_headers(headers) == CacheReference(cache_id="cache-1", reset_ttl_s=60, is_dry_run=True)
    with pytest.raises(ApiError, match="x-msh-context-cache-reset-ttl is 'soon'; expected whole seconds"):
        reference_of_headers({"x-msh-context-cache": "cache-1", "x-msh-context-cache-reset-ttl": "soon"})
