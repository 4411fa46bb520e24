"""Whether the server that opened a row still lives: a lock that dies with its process, however it dies.

On SQLite it is a file beside the database, held by `flock`; on PostgreSQL an advisory lock of the connection by which
the server writes. Neither needs a clock, and a server that was killed is known as dead at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from chogori.errors import DatabaseError
from chogori.serve.accounts.database import Database


class Lease(Protocol):
    """One server's sign of life."""

    def hold(self, connection: Connection) -> None:
        """Take it, or keep it, for as long as this process and this connection live. Raises DatabaseError."""
        ...

    def release(self) -> None:
        """Let it go: the server has closed its rows."""
        ...

    def clear(self) -> None:
        """Remove what dead servers left that had no row open."""
        ...

    def inherit(self, connection: Connection, process_id: str) -> contextlib.AbstractContextManager[bool]:
        """Whether another server is dead; while the block lasts, nobody else finds the same."""
        ...


def lease_of(database: Database, process_id: str) -> Lease:
    """The lease that fits a database."""
    if database.file is not None:
        return FileLease(database.file, process_id)
    return AdvisoryLease(process_id)


class FileLease:
    """A locked file beside SQLite's."""

    def __init__(self, database_file: Path, process_id: str) -> None:
        self._database_file = database_file
        self._process_id = process_id
        self._descriptor: int | None = None

    def _path(self, process_id: str) -> Path:
        return self._database_file.with_name(f"{self._database_file.name}-server-{process_id}")

    def hold(self, connection: Connection) -> None:
        """Lock the file."""
        del connection  # a file needs none
        if self._descriptor is not None:
            return
        path = self._path(self._process_id)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            while not _is_at(path, descriptor):
                # Another server's `clear` came between the two.
                os.close(descriptor)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise DatabaseError(f"{path} cannot be locked: {error.strerror}") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Remove the file, and with it the lock."""
        if self._descriptor is not None:
            self._path(self._process_id).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    @contextlib.contextmanager
    def inherit(self, connection: Connection, process_id: str) -> Generator[bool]:
        """Dead is whose file can be locked, or is gone."""
        del connection
        with _locked_if_dead(self._path(process_id)) as is_dead:
            yield is_dead

    def clear(self) -> None:
        """Remove the files of the dead; of one that dies meanwhile, the missing file says so as well."""
        own = self._path(self._process_id)
        for path in own.parent.glob(f"{self._path('*').name}"):
            if path != own:
                with _locked_if_dead(path):
                    pass


@contextlib.contextmanager
def _locked_if_dead(path: Path) -> Generator[bool]:
    """Whether nobody holds a file, which is then held for the length of the block, and removed."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


class AdvisoryLease:
    """A lock of the session with PostgreSQL; a pooler between must keep one server connection for each of ours."""

    def __init__(self, process_id: str) -> None:
        self._process_id = process_id

    def hold(self, connection: Connection) -> None:
        """Lock this server's number. Waits for a session that PostgreSQL has not found dead yet."""
        connection.execute(sql.select(sql.func.pg_advisory_lock(_number(self._process_id))))

    def release(self) -> None:
        """The session's end does it."""

    def clear(self) -> None:
        """Sessions leave nothing."""

    @contextlib.contextmanager
    def inherit(self, connection: Connection, process_id: str) -> Generator[bool]:
        """Dead is whose number can be locked."""
        number = _number(process_id)
        is_dead = bool(connection.scalar(sql.select(sql.func.pg_try_advisory_lock(number))))
        try:
            yield is_dead
        finally:
            if is_dead:
                connection.execute(sql.select(sql.func.pg_advisory_unlock(number)))


def _number(process_id: str) -> int:
    """PostgreSQL's locks are numbers of 63 bits."""
    return int(process_id[:15], 16)
