"""All documents of a configuration, in a fixed order: paths as given, then the dataset, then the standard library.

Within a folder, files come sorted by path. A file that is no text is skipped visibly inside a folder or glob (counted,
listed in the manifest, warned about once), and is an error when it was named itself. Names that begin with a dot and
`__pycache__` are passed over as a whole and listed too.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chogori.data.config import DataConfig
from chogori.data.document import Document, SkippedFile
from chogori.data.hugging_face import stream_dataset
from chogori.data.readers import NotText, read_documents
from chogori.data.standard_library import read_standard_library, standard_library_files
from chogori.errors import CorpusError

PASSED_OVER = "hidden or cache"
_CACHES = {"__pycache__"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read."""

    path: Path
    name: str
    """Name its documents get."""
    named_itself: bool
    """Whether the user named this very file, not a folder or glob that holds it."""


class Corpus:
    """The text that a DataConfig names. `skipped` and `num_empty` are known once all documents are read."""

    def __init__(self, config: DataConfig) -> None:
        """Finds the files at once. Raises CorpusError for a path that is missing or a folder or glob without files."""
        self._config = config
        self.skipped: list[SkippedFile] = []
        self.num_empty = 0
        found: dict[Path, SourceFile] = {}
        for given in config.paths:
            for source in _find(Path(given), self.skipped):
                known = found.setdefault(source.path.resolve(), source)
                if source.named_itself and not known.named_itself:
                    found[source.path.resolve()] = replace(known, named_itself=True)
        self._files = list(found.values())
        self._num_passed_over = len(self.skipped)

    @property
    def num_files(self) -> int:
        """Files found under `paths`."""
        return len(self._files)

    def signature(self) -> str:
        """Changes when any file's name, size or time of change does: the text need not be read to notice."""
        digest = hashlib.sha256()
        paths = [source.path for source in self._files]
        if self._config.stdlib:
            digest.update(platform.python_version().encode())
            paths += standard_library_files()
        for path in paths:
            status = path.stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def expected_bytes(self) -> int:
        """About as much text as `documents` will give, for a progress bar; at least 1."""
        config = self._config
        paths = [source.path for source in self._files] + (standard_library_files() if config.stdlib else [])
        found = sum(path.stat().st_size for path in paths)
        if config.max_bytes is not None and (config.dataset is not None or found > config.max_bytes):
            found = config.max_bytes
        return max(found, 1)

    def documents(self) -> Iterator[Document]:
        """All documents in order, text that is only white space left out."""
        del self.skipped[self._num_passed_over :]
        self.num_empty = 0
        for document in self._all():
            if document.text.strip():
                yield document
            else:
                self.num_empty += 1

    def _all(self) -> Iterator[Document]:
        for source in self._files:
            yield from self._read(source)
        if self._config.dataset is not None:
            yield from stream_dataset(self._config.dataset, text_field=self._config.text_field)
        if self._config.stdlib:
            yield from read_standard_library(self.skipped)

    def _read(self, source: SourceFile) -> Iterator[Document]:
        try:
            yield from read_documents(source.path, source.name, text_field=self._config.text_field)
        except NotText as error:
            if source.named_itself:
                raise CorpusError(
                    f"{source.path} is not text: {error}; expected UTF-8 text, code, JSONL or Parquet. Convert it "
                    "(iconv -t utf-8) or leave it out of data.paths."
                ) from error
            self.skipped.append(SkippedFile(source.name, str(error)))


def _find(given: Path, skipped: list[SkippedFile]) -> list[SourceFile]:
    path = given.expanduser()
    if path.is_dir():
        root = path.resolve()
        files = _walk(root, skipped)
        if not files:
            raise CorpusError(f"data.paths names the folder {given}, which holds no files; put text into it.")
        return [SourceFile(file, _name(root, file), False) for file in files]
    if path.is_file():
        return [SourceFile(path, path.name, True)]
    if glob.has_magic(str(path)):
        # pathlib's glob takes no absolute pattern
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            raise CorpusError(f"data.paths names {given}, which matches no file; quote it and check the pattern.")
        root = _fixed_part(path).resolve()
        return [SourceFile(file, _name(root, file.resolve()), False) for file in files]
    raise CorpusError(f"data.paths names {given}, which does not exist; expected a folder, a file or a glob.")


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first wildcard of a glob."""
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern


def _name(root: Path, path: Path) -> str:
    """A file's name in reports and for the split: the same wherever the folder `root` lies."""
    return f"{root.name}/{path.relative_to(root).as_posix()}" if path.is_relative_to(root) else path.name


def _walk(root: Path, skipped: list[SkippedFile]) -> list[Path]:
    """Files below a folder in order of their paths; links to folders are not followed, so there is an end."""
    files: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        for name in sorted([*subfolders, *names]):
            if name.startswith(".") or name in _CACHES:
                skipped.append(SkippedFile(_name(root, here / name), PASSED_OVER))
            elif name in subfolders and (here / name).is_symlink():
                skipped.append(SkippedFile(_name(root, here / name), "a link to a folder"))
            elif name in names and not (here / name).is_file():
                skipped.append(SkippedFile(_name(root, here / name), "no regular file"))
            elif name in names:
                files.append(here / name)
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in _CACHES]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())
