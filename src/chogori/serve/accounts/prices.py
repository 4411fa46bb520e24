"""What models cost: a table in a file that its operator edits, read exactly, and applied in whole 1e-12 USD.

A millionth of the smallest price unit, 0.000001 USD for a million tokens, is a whole number of these, so that prices,
costs and their sums are integers and nothing is ever rounded.
"""

from __future__ import annotations

import difflib
import fnmatch
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import cast

from chogori.errors import ConfigError

PICOUSD = 10**12
"""1e-12 USD in one USD."""
TOKENS_PRICED = 10**6
MAX_PRICE_USD = 10**6
"""No price is above it; a row's cost then fits the database's integers for any request that a model can answer."""
FILE_NAME = "prices.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What one model costs, in 1e-12 USD: for each token, but `cache_call`, which is for each time."""

    priced_as: str | None = None
    """The table's entry; None where it has none, and all is free."""
    input: int = 0
    cached_input: int = 0
    output: int = 0
    cache_creation: int = 0
    cache_storage: int = 0
    """For each token and minute begun."""
    cache_call: int = 0


_KEYS = {
    "input_per_mtok": ("input", TOKENS_PRICED),
    "cached_input_per_mtok": ("cached_input", TOKENS_PRICED),
    "output_per_mtok": ("output", TOKENS_PRICED),
    "cache_creation_per_mtok": ("cache_creation", TOKENS_PRICED),
    "cache_storage_per_mtok_minute": ("cache_storage", TOKENS_PRICED),
    "cache_call": ("cache_call", 1),
}
"""Names in the file, and the field and quantity that each is for."""
assert {field for field, _ in _KEYS.values()} | {"priced_as"} == {field.name for field in fields(Price)}


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """Prices by model id or pattern, in the file's order."""

    entries: Mapping[str, Price]
    origin: str
    """The file, or "built in"."""

    @classmethod
    def read(cls, file: Path) -> PriceTable:
        """Read a table. Raises ConfigError that names what is wrong."""
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the price table {file} cannot be read: {error}") from error
        return cls.parse(text, origin=str(file))

    @classmethod
    def built_in(cls) -> PriceTable:
        """Moonshot's published prices."""
        return cls.parse(built_in_text(), origin="built in")

    @classmethod
    def parse(cls, text: str, *, origin: str) -> PriceTable:
        """Read a table's text. Raises ConfigError that names what is wrong."""
        try:
            document = tomllib.loads(text, parse_float=Decimal)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"the price table {origin} is not TOML: {error}") from error
        try:
            unknown = set(document) - {"models"}
            if unknown:
                raise ConfigError(f"{min(unknown)!r} is unknown; expected only [models.NAME] tables")
            models = _table(document.get("models", {}), "models")
            return cls(entries={name: _price(name, entry) for name, entry in models.items()}, origin=origin)
        except ConfigError as error:
            raise ConfigError(f"the price table {origin}: {error}") from None

    def of(self, model: str) -> Price:
        """The prices of a model; a free one, whose `priced_as` is None, where the table has no entry for it."""
        if model in self.entries:
            return self.entries[model]
        for pattern, price in self.entries.items():
            if fnmatch.fnmatchcase(model.lower(), pattern.lower()):
                return price
        return Price()


def built_in_text() -> str:
    """The built-in table, to be edited."""
    return resources.files("chogori.serve.accounts").joinpath(FILE_NAME).read_text(encoding="utf-8")


def load_prices(data_folder: Path, file: Path | None) -> PriceTable:
    """The table in `file`, else `prices.toml` of the data folder where it stands, else the built-in one."""
    if file is not None:
        return PriceTable.read(file)
    standing = data_folder / FILE_NAME
    return PriceTable.read(standing) if standing.exists() else PriceTable.built_in()


def usd(picousd: int) -> str:
    """An exact amount as people write it, with cents at least: "0.0015", "12.50"."""
    whole, rest = divmod(abs(picousd), PICOUSD)
    digits = f"{rest:012d}".rstrip("0").ljust(2, "0")
    return f"{'-' if picousd < 0 else ''}{whole}.{digits}"


def picousd_of(amount: Decimal) -> int:
    """An amount of USD in 1e-12 USD. Raises ConfigError where that is no whole number."""
    scaled = amount * PICOUSD if amount.is_finite() else Decimal("NaN")
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise ConfigError(f"{amount} USD is finer than 1e-12 USD, or no number")
    return int(scaled)


def _price(name: str, value: object) -> Price:
    where = f"models.{name}"
    entry = _table(value, where)
    amounts: dict[str, int] = {}
    for key, amount in entry.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{where}.{key} is unknown; expected {', '.join(_KEYS)}{hint}")
        field, quantity = _KEYS[key]
        amounts[field] = _unit_price(f"{where}.{key}", amount, quantity)
    if "cached_input_per_mtok" not in entry:
        # A table that forgets them must not give them away.
        amounts["cached_input"] = amounts.get("input", 0)
    return Price(priced_as=name, **amounts)


def _unit_price(where: str, amount: object, quantity: int) -> int:
    if isinstance(amount, bool) or not isinstance(amount, int | Decimal):
        raise ConfigError(f"{where} is {amount!r}; expected a number of USD")
    price = Decimal(amount)
    if not price.is_finite() or not 0 <= price <= MAX_PRICE_USD:
        raise ConfigError(f"{where} is {amount}; expected 0 to {MAX_PRICE_USD} USD")
    scaled = price * PICOUSD / quantity
    if scaled != scaled.to_integral_value():
        raise ConfigError(f"{where} is {amount}; expected at most {6 if quantity > 1 else 12} decimal places")
    return int(scaled)


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}; expected a table")
    return cast(Mapping[str, object], value)
