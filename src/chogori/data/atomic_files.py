"""Files that are whole or not there: written beside their place, forced to disk, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Generator, Iterable
from pathlib import Path

from chogori.errors import StorageError

PARTIAL_SUFFIX = ".partial"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
Bytes = bytes | bytearray | memoryview


@contextlib.contextmanager
def storage_errors(target: Path) -> Generator[None]:
    """Turn a full or read-only disk into a StorageError that names the file and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"the disk is full: {target} could not be written. Free some space, or choose a folder on another "
                "disk, and start again; what is already whole is kept."
            ) from error
        if error.errno in _UNWRITABLE:
            raise StorageError(
                f"{target} could not be written ({error.strerror}); choose a folder you may write to."
            ) from error
        raise


def write_atomically(path: Path, content: Iterable[Bytes]) -> None:
    """Replace `path` by the pieces of `content`; a crash at any moment leaves the old file or the new one.

    Raises StorageError when the disk is full or read-only, and then leaves nothing behind.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with storage_errors(path):
        try:
            with partial.open("wb") as file:
                for piece in content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(folder: Path) -> Generator[None]:
    """Hold a folder against other processes that ask the same; the lock dies with its process, however it dies."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
