"""Files that are either whole or absent, and disk errors that say what to do. Loads no torch."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from chogori.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}


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
            raise StorageError(
                f"cannot {action}: {error.strerror}; choose a folder you may write to with --out"
            ) from error
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


def write_text_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a crash, sees the old content or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


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
