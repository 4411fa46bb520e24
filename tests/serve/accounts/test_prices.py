from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.errors import ConfigError
from chogori.serve.accounts.prices import (
    PICOUSD,
    TOKENS_PRICED,
    Price,
    PriceTable,
    built_in_text,
    load_prices,
    picousd_of,
    usd,
)
from chogori.serve.accounts.usage_table import cost_of


def parse(text: str) -> PriceTable:
    return PriceTable.parse(text, origin="test.toml")


def test_the_built_in_table_is_the_published_one() -> None:
    """Moonshot's: input $/M, cache creation $/M, storage $/M/min, call $/time."""
    table = PriceTable.built_in()
    for name, dollars in (("8k", 0.20), ("32k", 1.00), ("128k", 2.00)):
        price = table.of(f"moonshot-v1-{name}")
        assert price.input == round(dollars * TOKENS_PRICED)
        assert (price.cache_creation, price.cache_storage) == (1_000_000, 150_000)
        assert price.cache_call == 15 * PICOUSD // 10_000
    assert table.of("Kimi-K2-Instruct") == table.of("moonshotai/Kimi-K2-Instruct-0905") == table.of("kimi-k2")
    assert table.of("kimi-k2").output == 2_500_000
    assert table.of("nano") == Price()


@given(
    price=st.decimals(0, 1000, places=6),
    num_tokens=st.integers(0, 10_000_000),
)
def test_a_cost_is_exact(price: Decimal, num_tokens: int) -> None:
    """Against rational arithmetic: tokens × price ÷ a million, to the last digit."""
    entry = parse(f"[models.m]\noutput_per_mtok = {price:f}").of("m")
    row = dict.fromkeys(
        ("prompt_tokens", "cached_tokens", "quantity", "input_price", "cached_input_price", "unit_price"), 0
    )
    cost = cost_of({**row, "completion_tokens": num_tokens, "output_price": entry.output})
    assert Decimal(cost) == price * num_tokens * (PICOUSD // TOKENS_PRICED)


@given(st.integers(-(10**20), 10**20))
def test_an_amount_is_written_exactly(amount: int) -> None:
    assert picousd_of(Decimal(usd(amount))) == amount
    assert len(usd(amount).partition(".")[2]) >= 2


def test_the_exact_name_wins_then_the_first_pattern() -> None:
    table = parse('[models."k*"]\ninput_per_mtok = 1\n[models.kimi]\ninput_per_mtok = 2\n[models."*"]\n')
    assert [table.of(name).priced_as for name in ("kimi", "Kilo", "other")] == ["kimi", "k*", "*"]


def test_cached_input_costs_what_input_does_unless_it_is_said() -> None:
    assert parse("[models.m]\ninput_per_mtok = 2").of("m").cached_input == 2_000_000
    assert parse("[models.m]\ninput_per_mtok = 2\ncached_input_per_mtok = 0").of("m").cached_input == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models.m", "the price table test.toml is not TOML"),
        ("[model.m]", "'model' is unknown; expected only"),
        ("models = 3", "models is 3; expected a table"),
        ("[models]\nm = 2", "models.m is 2; expected a table"),
        ("[models.m]\ninput = 2", "models.m.input is unknown; expected input_per_mtok.*did you mean input_per_mtok"),
        ('[models.m]\ninput_per_mtok = "2"', "models.m.input_per_mtok is '2'; expected a number of USD"),
        ("[models.m]\ninput_per_mtok = true", "models.m.input_per_mtok is True; expected a number of USD"),
        ("[models.m]\ninput_per_mtok = -1", "models.m.input_per_mtok is -1; expected 0 to 1000000 USD"),
        ("[models.m]\ninput_per_mtok = nan", "models.m.input_per_mtok is NaN; expected 0 to"),
        ("[models.m]\ninput_per_mtok = 0.0000001", "expected at most 6 decimal places"),
        ("[models.m]\ncache_call = 0.0000000000001", "expected at most 12 decimal places"),
    ],
)
def test_a_wrong_table_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_the_table_of_the_data_folder_is_read_and_then_the_one_that_is_named(tmp_path: Path) -> None:
    assert load_prices(tmp_path, None).origin == "built in"
    (tmp_path / "prices.toml").write_text(built_in_text().replace("2.50", "9.50"))
    assert load_prices(tmp_path, None).of("kimi-k2").output == 9_500_000
    (tmp_path / "other.toml").write_text("")
    assert load_prices(tmp_path, tmp_path / "other.toml").entries == {}
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prices(tmp_path, tmp_path / "missing.toml")
