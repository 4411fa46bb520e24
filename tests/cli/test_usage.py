from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest

from chogori.cli.main import main
from chogori.cli.usage import _moment
from chogori.serve.accounts.database import Database, default_url
from chogori.serve.accounts.usage_table import DAY_S, usage

NOW = int(time.time())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with three requests: today's two, one of them unpriced, and one of last month."""
    database = Database.open(default_url(tmp_path))
    for i, (opened_at, model, priced_as, cost) in enumerate(
        [
            (NOW, "nano", "nano", 1_500_000_000),
            (NOW, "own", None, 0),
            (NOW - 31 * DAY_S, "nano", "nano", 10**12),
        ]
    ):
        row = {"id": f"{i}", "kind": "request", "process_id": "p", "model": model, "priced_as": priced_as}
        row |= {"opened_at": opened_at, "day": opened_at // DAY_S, "outcome": "finished", "cost": cost}
        with database.begin() as connection:
            connection.execute(usage.insert().values({**row, "prompt_tokens": 1000, "completion_tokens": 20}))
    database.close()
    return tmp_path


def test_a_table_with_its_sum_and_what_cost_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--by", "model", "--data-dir", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["nano", "2", "0", "2,000", "0", "40", "1.0015"] in lines
    assert ["own", "1", "0", "1,000", "0", "20", "0.00"] in lines
    assert ["all", "3", "0", "3,000", "0", "60", "1.0015"] in lines
    assert ["note", "1", "of", "these", "are", "of", "models", "without"] in [line[:8] for line in lines]


def test_json_and_csv_say_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--since", "7d", "--data-dir", str(folder)]
    assert main(["usage", "--by", "key", "--json", *where]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(record["name"], record["requests"], record["cost_usd"]) for record in records] == [
        ("(open server)", 2, "0.0015")
    ]
    assert main(["usage", "--by", "key", "--csv", *where]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows == [{name: str(value) for name, value in record.items()} for record in records]


def test_nothing_was_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "Nothing was used.\n"
    assert main(["usage", "--csv", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("key,name,requests,")


def test_a_day_is_utcs() -> None:
    assert _moment("2026-11-01") == _moment("2026-11-01T00:00:00+00:00") == _moment("2026-11-01T01:00:00+01:00")
    assert time.time() - _moment("2h") == pytest.approx(7200, abs=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "yesterday"], "since is 'yesterday'"),
        (["--since", "2026-13-01"], "since is '2026-13-01'; expected a day such as 2026-11-01"),
        (["--json", "--csv"], "json and csv are both set"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["usage", *arguments, "--data-dir", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
