"""A PostgreSQL of its own for the tests, from the system's packages: it listens at a socket in a folder, at no port."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg

SHARED_MEMORY = ["-c", "shared_buffers=16MB", "-c", "dynamic_shared_memory_type=mmap"]
SPEED = ["-c", "fsync=off", "-c", "full_page_writes=off"]
"""The tests kill servers, never this one's power."""
PATIENCE_S = 60.0


def find_binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, which Debian keeps off the path; None where they are not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


class PostgresServer:
    """A running server; `new_database` makes an empty database and says its URL."""

    def __init__(self, socket_folder: Path) -> None:
        self._folder = socket_folder
        self._num_databases = 0

    def new_database(self) -> str:
        self._num_databases += 1
        name = f"chogori_{self._num_databases}"
        with psycopg.connect(self.connection_words("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://tester@/{name}?host={self._folder}"

    def connection_words(self, name: str) -> str:
        return f"host={self._folder} user=tester dbname={name}"


@contextmanager
def running_postgres(binaries: Path) -> Generator[PostgresServer]:
    """The server until the block ends. PostgreSQL refuses to run as root, who therefore lends it to nobody."""
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    # Not in pytest's folders, which only their owner may enter; and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="chogori-pg-"))
    try:
        os.chown(folder, user.pw_uid, user.pw_gid)
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
            check=True,
            capture_output=True,
            cwd="/",
            user=user.pw_uid if os.getuid() == 0 else None,
        )
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", *SHARED_MEMORY, *SPEED],
                stdout=log,
                stderr=log,
                cwd="/",
                user=user.pw_uid if os.getuid() == 0 else None,
            )
        try:
            server = PostgresServer(folder)
            _await_answer(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    finally:
        shutil.rmtree(folder)


def _await_answer(server: PostgresServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            psycopg.connect(server.connection_words("postgres")).close()
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return
