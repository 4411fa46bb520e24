from __future__ import annotations

import json
from pathlib import Path

import pytest

from chogori.cli.main import main
from chogori.serve.accounts.database import Database, default_url
from chogori.serve.accounts.key_secret import key_secret
from chogori.serve.accounts.keys import KeyStore


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHOGORI_KEY_SECRET", raising=False)


def test_a_key_is_shown_once_works_and_is_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", str(tmp_path)]
    options = ["--rpm", "60", "--tpm", "9000", "--concurrent", "4", "--credit-usd", "2.5", "--expires", "30d"]
    assert main(["keys", "create", "Ada", "--models", "nano", "k2", *options, *where]) == 0
    shown = capsys.readouterr()
    key = shown.out.strip()
    assert shown.out == f"{key}\n", "so that KEY=$(chogori keys create Ada) holds the key alone"
    assert key not in shown.err
    database = Database.open(default_url(tmp_path))
    caller = KeyStore(database, key_secret(tmp_path)).find(key)
    assert caller is not None
    assert caller.models == {"nano", "k2"}
    assert caller.credit_picousd == 25 * 10**11

    assert main(["keys", "list", "--json", *where]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["id"], listed["name"], listed["state"]) == (caller.key_id, "Ada", "active")
    assert (listed["requests_per_minute"], listed["tokens_per_minute"], listed["concurrent_requests"]) == (60, 9000, 4)
    assert (listed["credit_usd"], listed["spent_usd"]) == ("2.50", "0.00")
    assert main(["keys", "list", *where]) == 0
    table = capsys.readouterr().out
    assert caller.key_id is not None
    assert caller.key_id in table
    assert "60 rpm" in table
    assert key[20:] not in table

    assert main(["keys", "revoke", caller.key_id, *where]) == 0
    assert capsys.readouterr().out == f"'Ada' ({caller.key_id}) is revoked; its next request is refused\n"
    assert KeyStore(database, key_secret(tmp_path)).find(key) is None
    database.close()


def test_the_secret_of_a_key_stands_in_json_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "Ada", "--json", "--data-dir", str(tmp_path)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["key"].startswith(f"sk-{made['id']}-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make"], "no action is named 'make'; the actions are create, list, revoke"),
        (["creat", "Ada"], "did you mean 'create'?"),
        (["create", "Ada", "--rpm", "0"], "requests_per_minute is 0; expected at least 1"),
        (["create", "Ada", "--scopes", "chta"], "no scope is named 'chta'; did you mean 'chat'?"),
        (["create", "Ada", "--credit-usd", "much"], "credit_usd is 'much'; expected an amount of USD"),
        (["create", "Ada", "--credit-usd", "-3"], "the credit is negative"),
        (["create", "Ada", "--credit-usd", "inf"], "Infinity USD is finer than 1e-12 USD, or no number"),
        (["create", "Ada", "--expires", "soon"], "expires is 'soon'; expected a number and s, m, h, d or w"),
        (["create", "Ada", "--expires", "0d"], "expires is '0d'"),
        (["create", ""], "the key's name is ''"),
        (["revoke", "abc"], "no key has this id"),
        (["list", "--database", "mysql://x/y"], "database begins with 'mysql'"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    where = [] if "--database" in arguments else ["--data-dir", str(tmp_path)]
    assert main(["keys", *arguments, *(where if len(arguments) > 1 or arguments == ["list"] else [])]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_no_keys_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "list", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "There are no keys yet; chogori keys create NAME makes one.\n"
