"""The secret that keys are hashed with: from the environment, or a file that is made at first use."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from chogori.durable_files import disk_errors, sync_folder
from chogori.errors import ConfigError

VARIABLE = "CHOGORI_KEY_SECRET"
FILE_NAME = "key-secret"
MIN_CHARS = 32


def key_secret(data_folder: Path) -> bytes:
    """The secret. Raises ConfigError for one that is too short or whose file others can read, StorageError for a disk.

    All servers and commands that use one database need the same.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        if len(given) < MIN_CHARS:
            raise ConfigError(f"{VARIABLE} has {len(given)} characters; expected at least {MIN_CHARS} random ones")
        return given.encode()
    file = data_folder / FILE_NAME
    with disk_errors(f"write {file}"):
        with contextlib.suppress(FileNotFoundError):
            return _read(file)
        data_folder.mkdir(parents=True, exist_ok=True)
        # Whole or absent, and of two processes that make it at once both take the first one's.
        partial = data_folder / f"{FILE_NAME}.{secrets.token_hex(8)}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as writing:
                writing.write(secrets.token_hex(32))
                writing.flush()
                os.fsync(writing.fileno())
            with contextlib.suppress(FileExistsError):
                file.hardlink_to(partial)
            sync_folder(data_folder)
        finally:
            partial.unlink()
        return _read(file)


def _read(file: Path) -> bytes:
    text = file.read_text("ascii").strip()
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{file} can be read by others (mode {mode:o}); expected 600: chmod 600 {file}")
    if len(text) < MIN_CHARS:
        raise ConfigError(f"{file} has {len(text)} characters; expected at least {MIN_CHARS}. Restore it from a copy")
    return text.encode()
