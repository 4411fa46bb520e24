"""The database of keys and usage: SQLite in a file, or PostgreSQL by URL.

Every concept declares its table on `metadata` in its own module. Calls block: they are made from a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Generator
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from chogori.errors import ConfigError, DatabaseError

logger = logging.getLogger(__name__)

metadata = sql.MetaData()
SCHEMA_VERSION = 1
WAIT_S = 5.0
"""How long a transaction waits for another one's lock, and a connection for its server."""
_OPENING = 0x43484F47
"""PostgreSQL's advisory lock under which tables are made; the number says CHOG."""
_WRITES = "chogori_writes"

facts = sql.Table(
    "account_facts",
    metadata,
    sql.Column("name", sql.String(64), primary_key=True),
    sql.Column("value", sql.String(256), nullable=False),
)
"""What holds for the whole database, such as the version of its schema."""


class Database:
    """Connections to one database. `Database.open(url)` makes it; `close` ends it."""

    def __init__(self, engine: Engine, file: Path | None) -> None:
        self._engine = engine
        self._file = file
        self._identity = None if file is None else _identity(file)

    def __repr__(self) -> str:
        return f"Database({self.name!r})"

    @classmethod
    def open(cls, url: str) -> Database:
        """Connect, and create the tables that are missing.

        Args:
            url: `sqlite:////absolute/file` (three slashes for a relative one) or `postgresql://user@host/name`.

        Raises ConfigError for a URL that is none of these, and DatabaseError where the database cannot be reached or
        written, or was made by a newer Chogori.
        """
        parsed = _parse(url)
        file = None if parsed.database is None or not _is_sqlite(parsed) else Path(parsed.database)
        with _database_errors(_name(parsed)):
            if file is not None:
                _create_file(file)
            database = cls(_engine(parsed), file)
            try:
                with database.begin() as connection:
                    database._prepare(connection)
            except BaseException:
                database.close()
                raise
        return database

    @property
    def name(self) -> str:
        """The URL without its password."""
        return _name(self._engine.url)

    @property
    def file(self) -> Path | None:
        """SQLite's file; None for PostgreSQL."""
        return self._file

    @contextlib.contextmanager
    def begin(self) -> Generator[Connection]:
        """One transaction that writes: committed at the end of the block, undone where an error leaves it.

        Raises DatabaseError where the database is locked, full, read-only or gone.
        """
        with self.connect() as connection, connection.execution_options(**{_WRITES: True}).begin():
            yield connection

    @contextlib.contextmanager
    def read(self) -> Generator[Connection]:
        """One transaction that only reads; on SQLite it waits for nobody. Raises DatabaseError."""
        with self.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def connect(self) -> Generator[Connection]:
        """A connection for the length of the block, without a transaction. Raises DatabaseError."""
        with self.errors():
            self.require_file()
            with self._engine.connect() as connection:
                yield connection

    @contextlib.contextmanager
    def errors(self) -> Generator[None]:
        """Turn what the database's driver raises in the block into DatabaseError."""
        with _database_errors(self.name):
            yield

    @staticmethod
    @contextlib.contextmanager
    def transaction(connection: Connection) -> Generator[Connection]:
        """One transaction that writes, on a connection that is kept."""
        with connection.execution_options(**{_WRITES: True}).begin():
            yield connection

    def require_file(self) -> None:
        """Raise DatabaseError where SQLite's file was deleted or exchanged: what is written to the old one is lost."""
        if self._file is not None and _identity(self._file) != self._identity:
            raise DatabaseError(f"{self.name}: the file was removed or replaced while it was in use; start again")

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def _prepare(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_OPENING)))
        if sql.inspect(connection).has_table(facts.name):
            stored = connection.scalar(sql.select(facts.c.value).where(facts.c.name == "schema_version"))
            if stored is not None and int(stored) > SCHEMA_VERSION:
                raise DatabaseError(
                    f"{self.name} was made by a newer Chogori (schema {stored}); this one reads up to {SCHEMA_VERSION}"
                )
        metadata.create_all(connection)
        if connection.scalar(sql.select(facts.c.value).where(facts.c.name == "schema_version")) is None:
            connection.execute(facts.insert().values(name="schema_version", value=str(SCHEMA_VERSION)))


def default_url(data_folder: Path) -> str:
    """Where a server keeps its accounts unless told otherwise."""
    return URL.create("sqlite", database=str(data_folder / "accounts.sqlite")).render_as_string()


def _parse(url: str) -> URL:
    expected = "expected sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/NAME"
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(f"database is no URL; {expected}") from error  # it may hold a password
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(f"database begins with {parsed.drivername!r}; {expected}")
    if _is_sqlite(parsed) and parsed.database in (None, "", ":memory:"):
        raise ConfigError("database is an SQLite database in memory, which would not outlive the server; name a file")
    return parsed


def _engine(url: URL) -> Engine:
    # hide_parameters: values of rows stand in no message and no log.
    if _is_sqlite(url):
        engine = sql.create_engine(url, hide_parameters=True, connect_args={"timeout": WAIT_S})
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    milliseconds = round(WAIT_S * 1000)
    try:
        return sql.create_engine(
            url,
            hide_parameters=True,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": round(WAIT_S),
                "options": f"-c lock_timeout={milliseconds} -c statement_timeout={2 * milliseconds}",
            },
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise ConfigError("PostgreSQL needs the package psycopg: pip install 'chogori[postgres]'") from error


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so, not before the first write
    connection.execute("PRAGMA journal_mode = WAL")
    # A commit survives the death of this process; only a power cut may lose the last ones, never half of one.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE waits for its turn; a transaction that first reads and then writes would be refused instead.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _create_file(file: Path) -> None:
    """Make SQLite's file, for nobody else to read: who asked what, and what it cost, is in it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise DatabaseError(f"the database {file} cannot be written: {error.strerror}") from error


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _name(url: URL) -> str:
    return url.render_as_string(hide_password=True)


@contextlib.contextmanager
def _database_errors(name: str) -> Generator[None]:
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError):
        raise  # our own mistakes
    except NoConnectionError as error:
        raise DatabaseError(f"{name} is busy: no connection came free") from error
    except DBAPIError as error:
        raise DatabaseError(f"{name} {_reason(error.orig)}") from error


def _reason(error: BaseException | None) -> str:
    """What is wrong, as the end of a sentence that begins with the database's name."""
    kind = getattr(error, "sqlite_errorname", "") if isinstance(error, sqlite3.Error) else ""
    words = str(error).strip().partition("\n")[0]
    for prefix, reason in {
        "SQLITE_BUSY": f"is locked: another program kept it for more than {WAIT_S:g} s",
        "SQLITE_LOCKED": "is locked by another program",
        "SQLITE_FULL": "cannot be written: the disk is full; free some space",
        "SQLITE_READONLY": "is read-only; it must be writable for this user, and so must its folder",
        "SQLITE_CANTOPEN": "cannot be opened; its folder must exist and be writable",
        "SQLITE_NOTADB": "is no SQLite database",
        "SQLITE_CORRUPT": "is damaged; restore it from a copy",
    }.items():
        if kind.startswith(prefix):
            return reason
    return f"failed: {words}"
