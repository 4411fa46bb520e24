from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from chogori.serve.accounts.database import Database
from tests.serve.accounts.postgres_server import PostgresServer, find_binaries, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Generator[PostgresServer]:
    """A PostgreSQL server that all tests share."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with running_postgres(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/accounts.sqlite"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture
def database(url: str) -> Generator[Database]:
    opened = Database.open(url)
    yield opened
    opened.close()
