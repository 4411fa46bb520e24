"""`chogori usage`: what was used and what it costs, by key, model or day."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from chogori.cli.durations import seconds_of
from chogori.errors import ConfigError

if TYPE_CHECKING:
    from chogori.serve.accounts.usage_report import UsageTotal


@dataclass(frozen=True, kw_only=True)
class UsageArguments:
    """What `chogori usage` takes."""

    by: Literal["key", "model", "day"] = "key"
    """What to sum up by. Days are UTC's."""
    since: str | None = None
    """Only what began at or after this: a day such as 2026-11-01, or how long ago, such as 7d or 24h."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a JSON list."""
    csv: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print comma-separated values, with a header."""
    database: str | None = None
    """sqlite:///FILE or postgresql://USER@HOST/NAME; None for the server's own default."""
    data_dir: Path | None = None
    """The server's data folder, where one was named to it."""


def main(arguments: Sequence[str]) -> int:
    """Run `chogori usage` with `arguments` and return the exit status."""
    options = parse(arguments)
    since = None if options.since is None else _moment(options.since)
    # Lazily: --help does without the database's library.
    from chogori.serve.accounts.database import Database, default_url
    from chogori.serve.accounts.usage_report import usage_totals
    from chogori.serve.settings import default_data_folder

    database = Database.open(options.database or default_url(options.data_dir or default_data_folder()))
    try:
        totals = usage_totals(database, options.by, since=since)
    finally:
        database.close()
    if options.json:
        print(json.dumps([_described(total, options.by) for total in totals], indent=2))
    elif options.csv:
        _print_csv(totals, options.by)
    else:
        _print_table(totals, options.by)
    return 0


def parse(arguments: Sequence[str]) -> UsageArguments:
    """Read the options. Raises ConfigError or exits with status 2."""
    options = tyro.cli(
        UsageArguments,
        args=list(arguments),
        prog="chogori usage",
        description="Show what was used and what it costs.",
    )
    if options.json and options.csv:
        raise ConfigError("json and csv are both set; expected one of them")
    return options


def _moment(text: str) -> float:
    """A day or a time in UTC, or one so long ago, as a Unix time."""
    if text[-1:] in "smhdw":
        return time.time() - seconds_of(text, "since")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"since is {text!r}; expected a day such as 2026-11-01, or how long ago, such as 7d or 24h"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _described(total: UsageTotal, by: str) -> dict[str, str | int]:
    from chogori.serve.accounts.prices import usd

    return {
        by: total.group,
        **({"name": total.name} if by == "key" else {}),
        "requests": total.requests,
        "unfinished": total.unfinished,
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "completion_tokens": total.completion_tokens,
        "cost_usd": usd(total.cost_picousd),
        "num_unpriced": total.num_unpriced,
    }


def _print_csv(totals: Sequence[UsageTotal], by: str) -> None:
    from chogori.serve.accounts.usage_report import UsageTotal

    nothing = UsageTotal(
        group="",
        name="",
        requests=0,
        unfinished=0,
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        cost_picousd=0,
        num_unpriced=0,
    )
    writer = csv.DictWriter(sys.stdout, list(_described(nothing, by)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_described(total, by) for total in totals)


def _print_table(totals: Sequence[UsageTotal], by: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from chogori.serve.accounts.prices import usd

    console = Console(highlight=False)
    if not totals:
        console.print("Nothing was used.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False, show_footer=len(totals) > 1, footer_style="bold")
    table.add_column(by, "all", overflow="fold")
    if by == "key":
        table.add_column("id")
    counts = ("requests", "unfinished", "prompt_tokens", "cached_tokens", "completion_tokens")
    titles = ("requests", "unfinished", "prompt", "cached", "answer")
    for title, name in zip(titles, counts, strict=True):
        table.add_column(title, f"{sum(getattr(total, name) for total in totals):,}", justify="right")
    table.add_column("cost USD", usd(sum(total.cost_picousd for total in totals)), justify="right")
    for total in totals:
        names = [escape(total.name), *([total.group] if by == "key" else [])]
        table.add_row(*names, *(f"{getattr(total, name):,}" for name in counts), usd(total.cost_picousd))
    console.print(table)
    num_unpriced = sum(total.num_unpriced for total in totals)
    if num_unpriced:
        console.print(
            f"[yellow]note[/]  {num_unpriced:,} of these are of models without an entry in the price table, and cost "
            "nothing; chogori prices shows it"
        )
