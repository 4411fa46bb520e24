"""The sign of life on SQLite: files that say who is dead, and are gone when nobody needs them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from chogori.serve.accounts.database import Database
from chogori.serve.accounts.lease import lease_of

HOLDS = """
import sys, time
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.lease import lease_of
database = Database.open(sys.argv[1])
with database.begin() as connection:
    lease_of(database, sys.argv[2]).hold(connection)
print("held", flush=True)
time.sleep(600)
"""


def test_who_is_killed_is_dead_at_once_and_who_lives_is_not(url: str, database: Database) -> None:
    other, mine = "a" * 32, "b" * 32
    command = [sys.executable, "-c", HOLDS, url, other]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, database.connect() as connection:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        lease = lease_of(database, mine)
        is_file = database.file is not None
        if is_file:  # on PostgreSQL the lock is of the connection, which its pool closes with the process
            with lease.inherit(connection, other) as is_dead:
                assert not is_dead
        process.kill()
        process.wait()
        with lease.inherit(connection, other) as is_dead:
            assert is_dead


def test_files_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/accounts.sqlite")
    living, mine = lease_of(database, "a" * 32), lease_of(database, "b" * 32)
    with database.connect() as connection:
        living.hold(connection)
        mine.hold(connection)
    (tmp_path / f"accounts.sqlite-server-{'c' * 32}").touch()
    mine.clear()
    names = sorted(path.name[-32:] for path in tmp_path.glob("*-server-*"))
    assert names == ["a" * 32, "b" * 32]
    living.release()
    mine.release()
    assert not list(tmp_path.glob("*-server-*"))
    database.close()


def test_servers_that_start_at_once_do_not_clear_each_other(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/accounts.sqlite")
    failures: list[BaseException] = []

    def start_and_stop(number: int) -> None:
        try:
            with database.connect() as connection:
                for i in range(20):
                    process_id = f"{number:016x}{i:016x}"
                    lease = lease_of(database, process_id)
                    lease.hold(connection)
                    lease_of(database, "f" * 32).clear()
                    with lease_of(database, "e" * 32).inherit(connection, process_id) as is_dead:
                        assert not is_dead
                    lease.release()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start_and_stop, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    database.close()
