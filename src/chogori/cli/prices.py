"""`chogori prices`: the table of prices in use, and whether a table is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from chogori.errors import ConfigError

if TYPE_CHECKING:
    from chogori.serve.accounts.prices import PriceTable


@dataclass(frozen=True, kw_only=True)
class PricesArguments:
    """What `chogori prices` takes."""

    check: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Read this table instead of the one in use, and say what is wrong with it."""
    text: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the built-in table as a file, to be edited."""
    data_dir: Path | None = None
    """The server's data folder, where one was named to it."""


def main(arguments: Sequence[str]) -> int:
    """Run `chogori prices` with `arguments` and return the exit status."""
    options = parse(arguments)
    # Lazily: --help needs none of it.
    from chogori.serve.accounts.prices import FILE_NAME, PriceTable, built_in_text, load_prices
    from chogori.serve.settings import default_data_folder

    if options.text:
        print(built_in_text(), end="")
        return 0
    folder = options.data_dir or default_data_folder()
    if options.check is not None:
        table = PriceTable.read(options.check)
        print(f"{options.check} is right: {len(table.entries)} entries")
    else:
        table = load_prices(folder, None)
    _print_table(table)
    if options.check is None:
        print(f"\nThe table is {table.origin}. chogori serve reads {folder / FILE_NAME} where it stands;")
        print("chogori prices --text > FILE writes one to edit, chogori prices --check FILE checks it.")
    return 0


def parse(arguments: Sequence[str]) -> PricesArguments:
    """Read the options. Raises ConfigError or exits with status 2."""
    options = tyro.cli(
        PricesArguments,
        args=list(arguments),
        prog="chogori prices",
        description="Show the prices in use, or check a table of them.",
    )
    if options.check is not None and options.text:
        raise ConfigError("check and text are both set; expected one of them")
    return options


def _print_table(prices: PriceTable) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from chogori.serve.accounts.prices import TOKENS_PRICED, usd

    table = Table(box=None, header_style="bold", pad_edge=False, title="USD for a million tokens", title_justify="left")
    table.add_column("model", overflow="fold")
    for title in ("input", "cached input", "output", "cache creation", "storage a minute", "cache call (each)"):
        table.add_column(title, justify="right")
    for name, price in prices.entries.items():
        by_token = (price.input, price.cached_input, price.output, price.cache_creation, price.cache_storage)
        table.add_row(escape(name), *(usd(amount * TOKENS_PRICED) for amount in by_token), usd(price.cache_call))
    Console(highlight=False).print(table)
