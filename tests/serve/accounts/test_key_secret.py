from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chogori.errors import ConfigError
from chogori.serve.accounts.key_secret import FILE_NAME, key_secret


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHOGORI_KEY_SECRET", raising=False)


def test_it_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    made = key_secret(folder)
    assert len(made) == 64
    assert key_secret(folder) == made
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_all_who_make_it_at_once_have_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: key_secret(tmp_path), range(40)))) == 1


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHOGORI_KEY_SECRET", "x" * 32)
    assert key_secret(tmp_path) == b"x" * 32
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("CHOGORI_KEY_SECRET", "short")
    with pytest.raises(ConfigError, match="CHOGORI_KEY_SECRET has 5 characters; expected at least 32"):
        key_secret(tmp_path)


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key_secret(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        key_secret(tmp_path)


def test_an_emptied_secret_is_refused(tmp_path: Path) -> None:
    key_secret(tmp_path)
    (tmp_path / FILE_NAME).write_text("")
    with pytest.raises(ConfigError, match="has 0 characters"):
        key_secret(tmp_path)
