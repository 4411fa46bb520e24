from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.serve.gateway.program_server import ProgramServer, running_program_server


@pytest.fixture(scope="module")
def program_server() -> Generator[ProgramServer]:
    with running_program_server() as server:
        yield server
