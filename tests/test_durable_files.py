"""A write that fails leaves what was there, and says what to do; a lock makes the second process wait."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chogori.durable_files import disk_errors, exclusive, require_space, write_atomically, write_text_atomically
from chogori.errors import StorageError


class FullDisk(io.FileIO):
    """A file on a disk with `room` bytes left for all such files together."""

    room = 0

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if size > FullDisk.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        FullDisk.room -= size
        return super().write(data)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> type[FullDisk]:
    """Every binary file opened for writing from now on lies on a FullDisk."""
    real_open = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb":
            return FullDisk(path, "w")
        return real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    return FullDisk


def test_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ([b"old"], [b"new ", bytearray(b"and "), memoryview(b"longer")]):
        write_atomically(path, content)
    assert path.read_bytes() == b"new and longer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("room", [0, 3, 7])
def test_full_disk_leaves_the_old_file(tmp_path: Path, full_disk: type[FullDisk], room: int) -> None:
    path = tmp_path / "file"
    full_disk.room = 3
    path.write_bytes(b"old")
    full_disk.room = room
    with pytest.raises(StorageError, match=r"cannot write .*file: the disk is full; free some space"):
        write_atomically(path, [b"new ", b"and longer"])
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_any_failure_leaves_the_old_file(tmp_path: Path) -> None:
    def content() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, content())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_text_is_replaced_too(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "file", "old")
    write_text_atomically(tmp_path / "file", "山")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "山"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(number: int) -> None:
    with pytest.raises(StorageError, match="cannot save it: the disk is full; free some space"), disk_errors("save it"):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_reported_by_native_code_is_named() -> None:
    with pytest.raises(StorageError, match="the disk is full"), disk_errors("save it"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_read_only_disk_is_named() -> None:
    advice = "cannot save it: .*; choose a folder you may write to"
    with pytest.raises(StorageError, match=advice), disk_errors("save it"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "another matter")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)), disk_errors("save it"):
        raise error


def test_missing_space_is_counted_before_writing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot save it: it needs 1,000,000,000,000.0 MB and the disk of .* has"):
        require_space(tmp_path, 10**18, "save it")


def test_second_process_waits_for_the_first(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from chogori.durable_files import exclusive\n"
        "print('asking', flush=True)\n"
        "with exclusive(pathlib.Path(sys.argv[1])):\n"
        "    print((pathlib.Path(sys.argv[1]) / 'note').read_text())\n"
    )
    with exclusive(tmp_path):
        second = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert second.stdout.readline() == "asking\n"
        (tmp_path / "note").write_text("the first is done")
    with second:
        assert second.stdout.read() == "the first is done\n"
