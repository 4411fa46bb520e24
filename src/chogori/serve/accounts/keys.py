"""API keys: made once, shown once, kept as a keyed hash, looked up anew for every request.

A key is `sk-`, a public id, `-` and 256 random bits. At rest there is only HMAC-SHA256 of the whole key under a secret
that is not in the database; so neither a copy of the database nor a guess of it opens anything.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import sqlalchemy as sql

from chogori.errors import ConfigError
from chogori.serve.accounts.caller import SCOPES, Caller, KeyLimits, Scope
from chogori.serve.accounts.database import Database, facts, metadata

api_key = sql.Table(
    "api_key",
    metadata,
    sql.Column("id", sql.String(32), primary_key=True),
    sql.Column("name", sql.String(100), nullable=False),
    sql.Column("digest", sql.String(64), nullable=False),  # HMAC-SHA256 of the key, in hexadecimal
    sql.Column("scopes", sql.Text, nullable=False),  # JSON list
    sql.Column("models", sql.Text),  # JSON list; None for all
    sql.Column("requests_per_minute", sql.BigInteger),
    sql.Column("tokens_per_minute", sql.BigInteger),
    sql.Column("concurrent_requests", sql.BigInteger),
    sql.Column("credit", sql.BigInteger),  # 1e-12 USD; None without limit
    sql.Column("spent", sql.BigInteger, nullable=False, default=0),  # 1e-12 USD: the sum of the key's rows of usage
    sql.Column("created_at", sql.Double, nullable=False),  # Unix time in seconds, as all that follow
    sql.Column("expires_at", sql.Double),
    sql.Column("revoked_at", sql.Double),
)

_FORM = re.compile(r"sk-([0-9a-f]{16})-[A-Za-z0-9_-]{43}")
_NOBODYS_DIGEST = "0" * 64
_KEY = sql.select(api_key).where(api_key.c.id == sql.bindparam("key"))
MAX_NAME_CHARS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRecord:
    """What is known of a key, which is not the key itself."""

    caller: Caller
    created_at: float
    """Unix time in seconds."""
    expires_at: float | None
    revoked_at: float | None

    @property
    def id(self) -> str:
        """The key's public part."""
        assert self.caller.key_id is not None
        return self.caller.key_id

    def state(self, now: float) -> str:
        """active, revoked or expired."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """A key just made. `secret` is the whole key, which nobody can read again."""

    secret: str = field(repr=False)
    record: KeyRecord


class KeyStore:
    """The keys of one database.

    `secret` is what the hashes are keyed with. Raises ConfigError where the database's keys were made with another one:
    none of them would be recognised.
    """

    def __init__(self, database: Database, secret: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._secret = secret
        self._clock = clock
        self._require_same_secret()

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[Scope],
        models: Iterable[str] | None = None,
        limits: KeyLimits = KeyLimits(),  # noqa: B008  a frozen value
        credit_picousd: int | None = None,
        lifetime_s: float | None = None,
    ) -> NewKey:
        """Make a key. Raises ConfigError for a name, scope or amount that cannot be."""
        asked = sorted(set(scopes))
        if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise ConfigError(f"the key's name is {name!r}; expected 1 to {MAX_NAME_CHARS} printable characters")
        if not asked or not set(asked) <= set(SCOPES):
            raise ConfigError(f"scopes are {', '.join(asked) or 'none'}; expected some of {', '.join(SCOPES)}")
        if credit_picousd is not None and not 0 <= credit_picousd < 2**63:
            raise ConfigError("the credit is negative or above 9 million USD; expected less, or none for no limit")
        now = self._clock()
        key_id = secrets.token_hex(8)
        secret = f"sk-{key_id}-{secrets.token_urlsafe(32)}"
        row = {
            "id": key_id,
            "name": name,
            "digest": self._digest(secret),
            "scopes": json.dumps(asked),
            "models": None if models is None else json.dumps(sorted(set(models))),
            "requests_per_minute": limits.requests_per_minute,
            "tokens_per_minute": limits.tokens_per_minute,
            "concurrent_requests": limits.concurrent_requests,
            "credit": credit_picousd,
            "spent": 0,
            "created_at": now,
            "expires_at": None if lifetime_s is None else now + lifetime_s,
            "revoked_at": None,
        }
        with self._database.begin() as connection:
            connection.execute(api_key.insert().values(row))
        return NewKey(secret=secret, record=_record(row))

    @property
    def is_local(self) -> bool:
        """Whether the keys are in a file of this machine, so that `find` waits for no network."""
        return self._database.file is not None

    def find(self, key: str) -> Caller | None:
        """Whose key this is; None for one that is unknown, revoked or expired. Raises DatabaseError.

        It takes as long for an id that is unknown as for a wrong secret.
        """
        form = _FORM.fullmatch(key)
        key_id = form[1] if form else ""
        with self._database.read() as connection:
            row = connection.execute(_KEY, {"key": key_id}).mappings().first()
        digest = _NOBODYS_DIGEST if row is None else row["digest"]
        is_same = hmac.compare_digest(digest, self._digest(key))
        if row is None or not is_same:
            return None
        record = _record(row)
        return record.caller if record.state(self._clock()) == "active" else None

    def list(self) -> list[KeyRecord]:
        """All keys, revoked ones too, in the order in which they were made."""
        with self._database.read() as connection:
            rows = connection.execute(sql.select(api_key).order_by(api_key.c.created_at, api_key.c.id)).mappings()
            return [_record(row) for row in rows]

    def revoke(self, key_id: str) -> KeyRecord:
        """End a key: the next request with it is refused, on every server of this database. Again changes nothing.

        Raises ConfigError for an id that no key has.
        """
        with self._database.begin() as connection:
            ends = api_key.update().where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None))
            connection.execute(ends.values(revoked_at=self._clock()))
            row = connection.execute(sql.select(api_key).where(api_key.c.id == key_id)).mappings().first()
        if row is None:
            # What was typed may be the key itself, which is repeated nowhere.
            raise ConfigError("no key has this id; chogori keys list shows them: 16 letters and digits")
        return _record(row)

    def _digest(self, key: str) -> str:
        return hmac.new(self._secret, key.encode(), hashlib.sha256).hexdigest()

    def _require_same_secret(self) -> None:
        mark = self._digest("the same secret")
        with self._database.read() as connection:
            known = connection.scalar(sql.select(facts.c.value).where(facts.c.name == "key_secret"))
        if known is None:
            with self._database.begin() as connection:
                known = connection.scalar(sql.select(facts.c.value).where(facts.c.name == "key_secret"))
                if known is None:
                    connection.execute(facts.insert().values(name="key_secret", value=mark))
                    known = mark
        if not hmac.compare_digest(known, mark):
            raise ConfigError(
                f"the keys in {self._database.name} were hashed with another secret than this machine's; copy its file "
                "key-secret here, or set CHOGORI_KEY_SECRET to the same on all"
            )


def _record(row: Mapping[Any, Any]) -> KeyRecord:
    models = cast(list[str] | None, None if row["models"] is None else json.loads(row["models"]))
    caller = Caller(
        key_id=row["id"],
        name=row["name"],
        scopes=frozenset(cast(list[Scope], json.loads(row["scopes"]))),
        models=None if models is None else frozenset(models),
        limits=KeyLimits(
            requests_per_minute=row["requests_per_minute"],
            tokens_per_minute=row["tokens_per_minute"],
            concurrent_requests=row["concurrent_requests"],
        ),
        credit_picousd=row["credit"],
        spent_picousd=row["spent"],
    )
    return KeyRecord(
        caller=caller, created_at=row["created_at"], expires_at=row["expires_at"], revoked_at=row["revoked_at"]
    )
