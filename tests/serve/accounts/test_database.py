"""The database: its URL, its versions, and what is said when it is locked, full, read-only, damaged or gone."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sql

from chogori.errors import ConfigError, DatabaseError
from chogori.serve.accounts import database as database_module
from chogori.serve.accounts.database import Database, facts


def test_a_transaction_is_whole_or_absent(database: Database) -> None:
    def fail_half_way() -> None:
        with database.begin() as connection:
            connection.execute(facts.insert().values(name="half", value="1"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    with database.begin() as connection:
        connection.execute(facts.insert().values(name="whole", value="1"))
    with database.read() as connection:
        names = set(connection.scalars(sql.select(facts.c.name)))
    assert names == {"schema_version", "whole"}


def test_two_that_read_and_then_write_take_turns(database: Database) -> None:
    """Without taking the lock first, SQLite would refuse one of two whose views have moved apart."""
    with database.begin() as connection:
        connection.execute(facts.insert().values(name="count", value="0"))

    def count_up() -> None:
        for _ in range(25):
            with database.begin() as connection:
                query = sql.select(facts.c.value).where(facts.c.name == "count").with_for_update()
                value = int(connection.scalar(query) or 0)
                connection.execute(facts.update().where(facts.c.name == "count").values(value=str(value + 1)))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.scalar(sql.select(facts.c.value).where(facts.c.name == "count")) == "100"


def test_many_may_open_an_empty_database_at_once(url: str) -> None:
    """Each makes the tables that are missing; none may fail because another was faster."""
    failures: list[BaseException] = []

    def open_it() -> None:
        try:
            Database.open(url).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_newer_schema_is_refused(database: Database, url: str) -> None:
    with database.begin() as connection:
        connection.execute(facts.update().where(facts.c.name == "schema_version").values(value="2"))
    with pytest.raises(DatabaseError, match=r"made by a newer Chogori \(schema 2\); this one reads up to 1"):
        Database.open(url)


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    Database.open(f"sqlite:///{tmp_path}/new/accounts.sqlite").close()
    assert stat.S_IMODE((tmp_path / "new" / "accounts.sqlite").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("accounts.sqlite", "database is no URL; expected sqlite:///FILE"),
        ("mysql://host/name", "database begins with 'mysql'; expected sqlite:///FILE"),
        ("sqlite://", "in memory, which would not outlive the server"),
        ("sqlite:///:memory:", "in memory, which would not outlive the server"),
    ],
)
def test_what_is_no_database_of_ours_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Database.open(url)


def test_a_password_stands_in_no_message() -> None:
    with pytest.raises(DatabaseError) as caught:
        Database.open("postgresql://user:open-sesame@127.0.0.1:1/name")
    assert "127.0.0.1:1/name" in str(caught.value)
    assert "open-sesame" not in str(caught.value)


def test_a_locked_database_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "WAIT_S", 0.05)
    database = Database.open(f"sqlite:///{tmp_path}/a.sqlite")
    holder = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    message = r"is locked: another program kept it for more than 0\.05 s"
    with pytest.raises(DatabaseError, match=message), database.begin():
        pass
    holder.execute("ROLLBACK")
    holder.close()
    with database.begin() as connection:
        connection.execute(facts.insert().values(name="after", value="1"))
    database.close()


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/a.sqlite")

    def fill() -> None:
        with database.begin() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            connection.execute(facts.insert(), [{"name": f"{i}", "value": "x" * 256} for i in range(2000)])

    with pytest.raises(DatabaseError, match="the disk is full; free some space"):
        fill()
    database.close()


def test_a_deleted_file_is_noticed(tmp_path: Path) -> None:
    """SQLite itself goes on in a file that has no name any more."""
    file = tmp_path / "a.sqlite"
    database = Database.open(f"sqlite:///{file}")
    file.unlink()
    with pytest.raises(DatabaseError, match="was removed or replaced while it was in use"), database.begin():
        pass
    database.close()


def test_what_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(DatabaseError, match="is no SQLite database"):
        Database.open(f"sqlite:///{tmp_path}/a.sqlite")


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match="cannot be written: File exists"):
        Database.open(f"sqlite:///{tmp_path}/file/a.sqlite")


def test_a_read_only_database_says_so(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/a.sqlite")

    def write() -> None:
        with database.begin() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
            connection.execute(facts.insert().values(name="x", value="1"))

    with pytest.raises(DatabaseError, match="is read-only"):
        write()
    database.close()


def test_a_server_that_is_not_there_says_so() -> None:
    with pytest.raises(DatabaseError, match=r"postgresql\+psycopg://user@127\.0\.0\.1:1/name failed: connection"):
        Database.open("postgresql://user@127.0.0.1:1/name")


def test_accounts_load_no_web_framework_and_no_torch() -> None:
    """So that chogori keys answers at once."""
    code = "import sys, chogori.serve.accounts.database; print(*{'torch', 'fastapi', 'uvicorn'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
