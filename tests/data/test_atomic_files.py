"""A write that fails leaves what was there; a lock makes the second process wait."""

import errno
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chogori.data.atomic_files import exclusive, storage_errors, write_atomically
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
    with pytest.raises(StorageError, match=r"the disk is full: .*file could not be written\. Free some space"):
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


def test_unwritable_place_is_named() -> None:
    message = r"file could not be written \(Read-only file system\); choose a folder"
    with pytest.raises(StorageError, match=message), storage_errors(Path("file")):
        raise OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(FileNotFoundError), storage_errors(Path("file")):
        raise FileNotFoundError(errno.ENOENT, "another matter")


def test_second_process_waits_for_the_first(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from chogori.data.atomic_files import exclusive\n"
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
