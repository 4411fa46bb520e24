"""Keys: recognised whole, kept as hashes only, ended at once, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sql

from chogori.errors import ConfigError
from chogori.serve.accounts import keys as keys_module
from chogori.serve.accounts.caller import KeyLimits
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.keys import KeyStore, api_key

SECRET = b"s" * 32


def test_a_key_is_its_caller_and_nothing_near_it_is(database: Database) -> None:
    store = KeyStore(database, SECRET)
    limits = KeyLimits(requests_per_minute=3, tokens_per_minute=400, concurrent_requests=2)
    made = store.create("Ada", scopes=["chat"], models=["nano"], limits=limits, credit_picousd=5)
    key = made.secret
    caller = store.find(key)
    assert caller == made.record.caller
    assert caller is not None
    assert (caller.name, caller.scopes, caller.models) == ("Ada", {"chat"}, {"nano"})
    assert (caller.limits, caller.credit_picousd, caller.spent_picousd) == (limits, 5, 0)
    other = store.create("Bea", scopes=["files"]).secret
    swapped = f"{key[:20]}{other[20:]}"
    for wrong in (key[:-1], key + "x", key.upper(), swapped, "", "sk-", f"{key}\n", "sk-" + "é" * 60, key[:19]):
        assert store.find(wrong) is None, wrong


def test_at_rest_there_is_nothing_of_the_secret(database: Database) -> None:
    key = KeyStore(database, SECRET).create("Ada", scopes=["chat"]).secret
    with database.read() as connection:
        row = connection.execute(sql.select(api_key)).one()
    assert key[20:] not in repr(tuple(row))
    file = database.file
    if file is not None:
        stored = b"".join(path.read_bytes() for path in file.parent.glob("accounts.sqlite*"))
        assert row.digest.encode() in stored
        assert key[20:].encode() not in stored


def test_a_copied_hash_is_no_key_without_the_secret(database: Database) -> None:
    store = KeyStore(database, SECRET)
    key = store.create("Ada", scopes=["chat"]).secret
    with pytest.raises(ConfigError, match="hashed with another secret than this machine's"):
        KeyStore(database, b"t" * 32)
    store._secret = b"t" * 32
    assert store.find(key) is None


def test_no_text_of_a_new_key_shows_it(database: Database) -> None:
    made = KeyStore(database, SECRET).create("Ada", scopes=["chat"])
    assert made.secret not in f"{made!r} {made.record!r} {made}"


def test_a_key_ends_when_it_is_revoked_elsewhere(database: Database, url: str) -> None:
    store = KeyStore(database, SECRET)
    made = store.create("Ada", scopes=["chat"])
    assert store.find(made.secret) is not None
    elsewhere = Database.open(url)
    ended = KeyStore(elsewhere, SECRET).revoke(made.record.id)
    assert ended.state(0) == "revoked"
    assert KeyStore(elsewhere, SECRET).revoke(made.record.id).revoked_at == ended.revoked_at
    elsewhere.close()
    assert store.find(made.secret) is None


def test_a_key_ends_at_its_time(database: Database) -> None:
    now = 1000.0
    store = KeyStore(database, SECRET, clock=lambda: now)
    key = store.create("Ada", scopes=["chat"], lifetime_s=10).secret
    now = 1009.9
    assert store.find(key) is not None
    now = 1010.0
    assert store.find(key) is None
    assert store.list()[0].state(now) == "expired"


def test_an_unknown_id_is_compared_as_a_known_one_is(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an id exists must not be told by time: the same work is done for both."""
    store = KeyStore(database, SECRET)
    key = store.create("Ada", scopes=["chat"]).secret
    compared: list[tuple[int, int]] = []
    compare = keys_module.hmac.compare_digest

    def watched(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", watched)
    for asked in (key, f"{key[:-1]}{'A' if key[-1] != 'A' else 'B'}", f"sk-{'0' * 16}-{key[20:]}", "nonsense"):
        store.find(asked)
    assert compared == [(64, 64)] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "expected 1 to 100 printable characters"),
        ({"name": "a\nb"}, "expected 1 to 100 printable characters"),
        ({"scopes": []}, "expected some of chat, files, caching, admin"),
        ({"scopes": ["everything"]}, "expected some of chat, files, caching, admin"),
        ({"credit_picousd": -1}, "the credit is negative"),
        ({"credit_picousd": 2**63}, "above 9 million USD"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: object, change: dict[str, object], message: str) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/keys.sqlite")
    with pytest.raises(ConfigError, match=message):
        KeyStore(database, SECRET).create(**{"name": "Ada", "scopes": ["chat"], **change})  # pyright: ignore[reportArgumentType]
    database.close()


def test_what_was_typed_for_an_id_is_not_repeated(tmp_path: object) -> None:
    """It may be the key."""
    database = Database.open(f"sqlite:///{tmp_path}/keys.sqlite")
    store = KeyStore(database, SECRET)
    key = store.create("Ada", scopes=["chat"]).secret
    with pytest.raises(ConfigError, match="no key has this id") as caught:
        store.revoke(key)
    assert key not in str(caught.value)
    database.close()
