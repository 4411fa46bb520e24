from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chogori.cli.main import main
from chogori.serve.accounts.prices import PriceTable


def test_the_table_in_use_is_shown_with_where_another_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["prices", "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert ["moonshot-v1-8k", "0.20", "0.00", "2.00", "1.00", "0.15", "0.0015"] in [
        line.split() for line in shown.splitlines()
    ]
    assert "The table is built in." in shown
    assert str(tmp_path / "prices.toml") in shown


def test_the_printed_table_can_be_edited_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "--text"]) == 0
    text = capsys.readouterr().out
    assert PriceTable.parse(text, origin="").entries == PriceTable.built_in().entries
    file = tmp_path / "prices.toml"
    file.write_text(text.replace("output_per_mtok = 2.50", "output_per_mtok = 7.75"))
    assert main(["prices", "--check", str(file)]) == 0
    assert f"{file} is right: 4 entries" in capsys.readouterr().out
    assert main(["prices", "--data-dir", str(tmp_path)]) == 0
    assert "7.75" in capsys.readouterr().out
    file.write_text("[models.m]\ninput_per_mtok = -1\n")
    assert main(["prices", "--check", str(file)]) == 2
    assert "models.m.input_per_mtok is -1; expected 0 to 1000000 USD" in capsys.readouterr().err
    assert main(["prices", "--data-dir", str(tmp_path)]) == 2


@pytest.mark.parametrize("verb", ["keys", "usage", "prices"])
def test_help_loads_neither_the_database_nor_torch(verb: str) -> None:
    code = (
        "import sys; from chogori.cli.main import main\n"
        f"try: main([{verb!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', *sorted({'torch', 'sqlalchemy', 'fastapi'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded:"
