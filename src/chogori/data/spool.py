"""Accepted documents on disk while a corpus is prepared: read once from wherever they come, used several times."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from chogori.data.document import Document
from chogori.durable_files import disk_errors


class Spool:
    """Appends texts to one file and reads them back by number. The file is deleted on exit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(f"write {path}"):
            self._file = path.open("w+b")
        self._starts = array("Q")
        self._sizes = array("Q")
        self.names: list[str] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        # What a full disk left unwritten is no longer wanted, and would fail again in close().
        try:
            self._file.close()
        except OSError:
            if kind is None:
                raise

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> Sequence[int]:
        """UTF-8 bytes of each document."""
        return self._sizes

    def append(self, document: Document) -> int:
        """Add a document and return its size in UTF-8 bytes. Raises StorageError when the disk is full."""
        content = document.text.encode()
        with disk_errors(f"write {self._path}"):
            self._starts.append(self._file.seek(0, 2))
            self._file.write(content)
        self._sizes.append(len(content))
        self.names.append(document.name)
        return len(content)

    def content(self, number: int) -> bytes:
        """UTF-8 bytes of a document."""
        with disk_errors(f"write {self._path}"):
            self._file.seek(self._starts[number])
            return self._file.read(self._sizes[number])

    def texts(self, numbers: Sequence[int]) -> Iterator[str]:
        """Texts of documents, one at a time."""
        return (self.content(number).decode() for number in numbers)

    def divide(self, number: int, position: int) -> int:
        """Cut a document in two at a byte position (a character's beginning); returns the second part's number."""
        self._starts.append(self._starts[number] + position)
        self._sizes.append(self._sizes[number] - position)
        self._sizes[number] = position
        self.names.append(f"{self.names[number]}#end")
        return len(self.names) - 1
