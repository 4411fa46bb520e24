"""Files that are either whole or absent, folders held against other processes, and disk errors that say what to do.

Everything that must survive a crash is written by this module's rule: beside its place, forced to disk, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path

from chogori.errors import StorageError

PARTIAL_SUFFIX = ".partial"
Bytes = bytes | bytearray | memoryview

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@contextlib.contextmanager
def disk_errors(action: str) -> Generator[None]:
    """Turn "no space left" and "not writable" of the enclosed block into StorageError; `action` completes "cannot …".

    Writers in native code (torch.save, safetensors) report a full disk as their own exception types with the system's
    words in the message, so the text is read too.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(f"cannot {action}: the disk is full; free some space and start again") from error
        if error.errno in _UNWRITABLE:
            raise StorageError(f"cannot {action}: {error.strerror}; choose a folder you may write to") from error
        raise
    except Exception as error:
        words = str(error)
        if "No space left" in words or "os error 28" in words:
            raise StorageError(f"cannot {action}: the disk is full; free some space and start again") from error
        raise


def require_space(folder: Path, num_bytes: int, action: str) -> None:
    """Raise StorageError when the disk of `folder` has less than `num_bytes` left: cheaper than failing half-way."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise StorageError(
            f"cannot {action}: it needs {num_bytes / 1e6:,.1f} MB and the disk of {folder} has {free / 1e6:,.1f} MB "
            "left; free some space and start again"
        )


def write_atomically(path: Path, content: Iterable[Bytes]) -> None:
    """Replace `path` by the pieces of `content`; a reader, or a crash, sees the old file or the new, never a mixture.

    Raises StorageError when the disk is full or read-only, and then leaves nothing behind.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with disk_errors(f"write {path}"):
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


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for text, as UTF-8."""
    write_atomically(path, [text.encode("utf-8")])


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file below `folder`, and the folders themselves, survive a power cut."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [*(entry for entry in folder.rglob("*") if entry.is_dir()), folder]:
        sync_folder(path)


@contextlib.contextmanager
def exclusive(folder: Path) -> Generator[None]:
    """Hold a folder against other processes that ask the same; the lock dies with its process, however it dies."""
    with disk_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
