"""Files that are whole or absent, whatever is killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from chogori.serve.api_errors import ApiError
from chogori.serve.file_store import LEFTOVERS_AGE_S, FileStore


def add(store: FileStore, *pieces: bytes) -> str:
    return store.add(pieces, filename="a.txt", purpose="batch", max_bytes=10).id


def test_files_outlive_the_process(tmp_path: Path) -> None:
    file_id = add(FileStore(tmp_path), b"he", b"llo")
    again = FileStore(tmp_path)
    assert again.content_path(again.get(file_id)).read_bytes() == b"hello"
    assert again.list() == [again.get(file_id)]


def test_a_kill_between_content_and_record_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("chogori.serve.file_store.write_text_atomically", kill)
    with pytest.raises(Killed):
        add(FileStore(tmp_path), b"x")
    (leftover,) = tmp_path.iterdir()

    assert FileStore(tmp_path).list() == []
    assert leftover.exists(), "another server may be about to write its record"
    old = time.time() - LEFTOVERS_AGE_S - 1
    os.utime(leftover, (old, old))
    FileStore(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_old_whole_files_are_no_leftovers(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    file_id = add(store, b"x")
    old = time.time() - LEFTOVERS_AGE_S - 1
    for path in tmp_path.iterdir():
        os.utime(path, (old, old))
    store = FileStore(tmp_path)
    assert store.content_path(store.get(file_id)).read_bytes() == b"x"


def test_a_kill_within_a_deletion_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)
    file_id = add(store, b"x")

    def kill(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chogori.serve.file_store.sync_folder", kill)
    with pytest.raises(KeyboardInterrupt):
        store.delete(file_id)
    with pytest.raises(ApiError, match="no file has the id"):
        store.get(file_id)


def test_what_is_too_large_leaves_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert store.get(add(store, b"x" * 10)).bytes == 10
    num_files = len(list(tmp_path.iterdir()))
    with pytest.raises(ApiError, match="larger than") as caught:
        add(store, b"x" * 10, b"x")
    assert caught.value.status == 413
    assert len(list(tmp_path.iterdir())) == num_files


def test_an_id_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    store = FileStore(tmp_path / "files")
    for file_id in ("../secret", "file-" + "g" * 32, "file-" + "a" * 32 + "\n", ""):
        with pytest.raises(ApiError, match="no file has the id"):
            store.get(file_id)
        with pytest.raises(ApiError, match="no file has the id"):
            store.delete(file_id)
