"""`chogori keys create|list|revoke`: the keys of a server's clients."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import tyro

from chogori.cli.durations import seconds_of
from chogori.cli.main import did_you_mean
from chogori.errors import ConfigError

if TYPE_CHECKING:
    from chogori.serve.accounts.database import Database
    from chogori.serve.accounts.keys import KeyRecord, KeyStore

ACTIONS = {
    "create": "Make a key, and show it once",
    "list": "Show every key, without what is secret of it",
    "revoke": "End a key; its next request is refused",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the keys are."""

    database: str | None = None
    """sqlite:///FILE or postgresql://USER@HOST/NAME; None for the server's own default."""
    data_dir: Path | None = None
    """The server's data folder, where one was named to it."""


@dataclass(frozen=True, kw_only=True)
class CreateArguments(Place):
    """What `chogori keys create` takes."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Whose key it is, for lists and reports."""
    scopes: tuple[str, ...] = ("chat", "files", "caching")
    """What it may do: chat asks models, files stores files, caching keeps context caches, admin reads /metrics."""
    models: tuple[str, ...] | None = None
    """Ids of the models it may ask; None for all."""
    rpm: int | None = None
    """Most requests a minute; None for any number, as for the next two."""
    tpm: int | None = None
    """Most tokens a minute, of prompts and answers."""
    concurrent: int | None = None
    """Most requests at one time."""
    credit_usd: str | None = None
    """What may be spent in all, such as 25 or 0.50; None without limit."""
    expires: str | None = None
    """How long it lives, such as 12h or 30d; None until it is revoked."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class ListArguments(Place):
    """What `chogori keys list` takes."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a JSON list."""


@dataclass(frozen=True, kw_only=True)
class RevokeArguments(Place):
    """What `chogori keys revoke` takes."""

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """The key's id, which chogori keys list shows."""


Arguments = CreateArguments | ListArguments | RevokeArguments
_FIELDS: dict[str, type[Arguments]] = {"create": CreateArguments, "list": ListArguments, "revoke": RevokeArguments}


def main(arguments: Sequence[str]) -> int:
    """Run `chogori keys` with `arguments` and return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    options = parse(arguments)
    database, store = _open(options)
    try:
        match options:
            case CreateArguments():
                _create(store, options)
            case ListArguments():
                _list(store, as_json=options.json)
            case RevokeArguments():
                record = store.revoke(options.id)
                print(f"{record.caller.name!r} ({record.id}) is revoked; its next request is refused")
    finally:
        database.close()
    return 0


def parse(arguments: Sequence[str]) -> Arguments:
    """Read `create NAME …`, `list` or `revoke ID`. Raises ConfigError or exits with status 2."""
    action, *rest = arguments
    if action not in ACTIONS:
        raise ConfigError(
            f"no action is named {action!r}{did_you_mean(action, ACTIONS)}; the actions are {', '.join(ACTIONS)}"
        )
    fields = _FIELDS[action]
    return tyro.cli(fields, args=rest, prog=f"chogori keys {action}", description=f"{ACTIONS[action]}.")


def usage() -> str:
    """What `chogori keys --help` prints."""
    width = max(map(len, ACTIONS))
    lines = [f"  {action:<{width}}  {purpose}" for action, purpose in ACTIONS.items()]
    return "\n".join(["usage: chogori keys ACTION …", "", *lines, "", "chogori keys ACTION --help lists every field."])


def _open(place: Place) -> tuple[Database, KeyStore]:
    # Lazily, here and below: --help does without the database's library.
    from chogori.serve.accounts.database import Database, default_url
    from chogori.serve.accounts.key_secret import key_secret
    from chogori.serve.accounts.keys import KeyStore
    from chogori.serve.settings import default_data_folder

    folder = place.data_dir or default_data_folder()
    database = Database.open(place.database or default_url(folder))
    try:
        return database, KeyStore(database, key_secret(folder))
    except BaseException:
        database.close()
        raise


def _create(store: KeyStore, options: CreateArguments) -> None:
    from chogori.serve.accounts.caller import KeyLimits, Scope

    scopes: list[Scope] = []
    for scope in options.scopes:
        known = [name for name in get_args(Scope) if name == scope]
        if not known:
            expected = ", ".join(get_args(Scope))
            raise ConfigError(f"no scope is named {scope!r}{did_you_mean(scope, get_args(Scope))}; expected {expected}")
        scopes += known
    made = store.create(
        options.name,
        scopes=scopes,
        models=options.models,
        limits=KeyLimits(
            requests_per_minute=options.rpm,
            tokens_per_minute=options.tpm,
            concurrent_requests=options.concurrent,
        ),
        credit_picousd=None if options.credit_usd is None else _credit(options.credit_usd),
        lifetime_s=None if options.expires is None else seconds_of(options.expires, "expires"),
    )
    if options.json:
        print(json.dumps({**_described(made.record), "key": made.secret}))
        return
    # The key alone goes to stdout, so that KEY=$(chogori keys create NAME) holds it and nothing else.
    print(made.secret)
    print(
        f"This is the key of {options.name!r}, shown this once; its id is {made.record.id}. Send it as Authorization: "
        "Bearer KEY, or x-api-key: KEY.",
        file=sys.stderr,
    )


def _credit(text: str) -> int:
    from chogori.serve.accounts.prices import picousd_of

    try:
        return picousd_of(Decimal(text.strip().removeprefix("$")))
    except InvalidOperation:
        raise ConfigError(f"credit_usd is {text!r}; expected an amount of USD such as 25 or 0.50") from None


def _list(store: KeyStore, *, as_json: bool) -> None:
    records = store.list()
    if as_json:
        print(json.dumps([_described(record) for record in records], indent=2))
        return
    if not records:
        print("There are no keys yet; chogori keys create NAME makes one.")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from chogori.serve.accounts.prices import usd

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("id", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("may", overflow="fold", min_width=7)
    table.add_column("limits", min_width=8)
    table.add_column("spent USD", justify="right")
    table.add_column("expires", no_wrap=True)
    for record in records:
        caller = record.caller
        state = record.state(time.time())
        table.add_row(
            record.id,
            escape(caller.name),
            f"[{'green' if state == 'active' else 'red'}]{state}[/]",
            _may(record),
            _limits(record),
            usd(caller.spent_picousd) + ("" if caller.credit_picousd is None else f" of {usd(caller.credit_picousd)}"),
            "" if record.expires_at is None else _day(record.expires_at),
        )
    Console(highlight=False).print(table)


def _may(record: KeyRecord) -> str:
    from rich.markup import escape

    caller = record.caller
    models = "" if caller.models is None else f"\nonly {' '.join(sorted(caller.models))}"
    return escape(" ".join(sorted(caller.scopes)) + models)


def _limits(record: KeyRecord) -> str:
    limits = record.caller.limits
    named = {"rpm": limits.requests_per_minute, "tpm": limits.tokens_per_minute, "at once": limits.concurrent_requests}
    return ", ".join(f"{value:,} {name}" for name, value in named.items() if value is not None) or "none"


def _described(record: KeyRecord) -> dict[str, object]:
    from chogori.serve.accounts.prices import usd

    caller = record.caller
    return {
        "id": record.id,
        "name": caller.name,
        "state": record.state(time.time()),
        "scopes": sorted(caller.scopes),
        "models": None if caller.models is None else sorted(caller.models),
        "requests_per_minute": caller.limits.requests_per_minute,
        "tokens_per_minute": caller.limits.tokens_per_minute,
        "concurrent_requests": caller.limits.concurrent_requests,
        "credit_usd": None if caller.credit_picousd is None else usd(caller.credit_picousd),
        "spent_usd": usd(caller.spent_picousd),
        "created_at": _time(record.created_at),
        "expires_at": _time(record.expires_at),
        "revoked_at": _time(record.revoked_at),
    }


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
