"""Uploaded files on disk: whole or absent, whatever is killed, and never outside their folder."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from chogori.durable_files import PARTIAL_SUFFIX, disk_errors, sync_folder, write_atomically, write_text_atomically
from chogori.serve.api_errors import ApiError

_ID = re.compile(r"file-[0-9a-f]{32}")
_RECORD, _CONTENT = ".json", ".content"
LEFTOVERS_AGE_S = 3600


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """What is known of an uploaded file."""

    id: str
    filename: str
    """As the client named it; never a name on our disk."""
    purpose: str
    bytes: int
    created_at: int
    """Unix time in seconds."""
    owner: str = ""
    """`Caller.owner` of whoever uploaded it; nobody else knows that it is there."""


class FileStore:
    """A folder of uploaded files.

    A file is a content and a record. The record is written last and removed first, so a file is there exactly when its
    record is; contents without one, left by a kill, are removed when the store is opened an hour later: before, another
    server may be about to write their record.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with disk_errors(f"write {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            for path in [*folder.glob(f"*{_CONTENT}"), *folder.glob(f"*{PARTIAL_SUFFIX}")]:
                is_old = time.time() - path.stat().st_mtime > LEFTOVERS_AGE_S
                if is_old and not path.with_suffix(_RECORD).exists():
                    path.unlink(missing_ok=True)

    def add(
        self, content: Iterable[bytes], *, filename: str, purpose: str, max_bytes: int, owner: str = ""
    ) -> StoredFile:
        """Store a file. Raises the 413 of one that is larger than `max_bytes`, and then keeps nothing."""
        file_id = f"file-{secrets.token_hex(16)}"
        num_bytes = 0

        def counted() -> Iterator[bytes]:
            nonlocal num_bytes
            for piece in content:
                num_bytes += len(piece)
                if num_bytes > max_bytes:
                    raise ApiError(
                        f"the file is larger than {max_bytes / 1e6:g} MB; expected at most that",
                        status=413,
                        field="file",
                        code="file_too_large",
                    )
                yield piece

        write_atomically(self._path(file_id, _CONTENT), counted())
        file = StoredFile(
            id=file_id,
            filename=filename,
            purpose=purpose,
            bytes=num_bytes,
            created_at=int(time.time()),
            owner=owner,
        )
        write_text_atomically(self._path(file_id, _RECORD), json.dumps(asdict(file)))
        return file

    def list(self, owner: str = "") -> list[StoredFile]:
        """An owner's files, the newest first."""
        files: list[StoredFile] = []
        for path in self._folder.glob(f"*{_RECORD}"):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                files.append(StoredFile(**json.loads(path.read_text("utf-8"))))
        files = [file for file in files if file.owner == owner]
        return sorted(files, key=lambda file: (file.created_at, file.id), reverse=True)

    def get(self, file_id: str, owner: str = "") -> StoredFile:
        """What is known of a file. Raises the 404 of one that is not there, or is another's."""
        try:
            file = StoredFile(**json.loads(self._path(file_id, _RECORD).read_text("utf-8")))
        except FileNotFoundError:
            raise _missing(file_id) from None
        if file.owner != owner:
            raise _missing(file_id)
        return file

    def content_path(self, file: StoredFile) -> Path:
        """Where a file's bytes are."""
        return self._path(file.id, _CONTENT)

    def delete(self, file_id: str, owner: str = "") -> None:
        """Remove a file. Raises the 404 of one that is not there, or is another's."""
        self.get(file_id, owner)
        with disk_errors(f"delete {file_id}"):
            try:
                self._path(file_id, _RECORD).unlink()
            except FileNotFoundError:
                raise _missing(file_id) from None
            sync_folder(self._folder)
            self._path(file_id, _CONTENT).unlink(missing_ok=True)

    def _path(self, file_id: str, suffix: str) -> Path:
        """A path in the folder: an id is only what this store makes, so it cannot lead out of it."""
        if not _ID.fullmatch(file_id):
            raise _missing(file_id)
        return self._folder / f"{file_id}{suffix}"


def _missing(file_id: str) -> ApiError:
    return ApiError(f"no file has the id {file_id!r}", status=404, field="file_id", code="file_not_found")
