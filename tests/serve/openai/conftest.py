"""Tests of one API share a server."""

from __future__ import annotations

import pytest

from tests.serve.conftest import Serve


@pytest.fixture
def serve(shared_serve: Serve) -> Serve:
    return shared_serve
