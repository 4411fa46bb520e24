"""The default corpus: source and documentation of the Python standard library that is running, about 12 MB.

Every machine that runs Chogori has it. Left out: installed packages; the test suite (half of the files by size, mostly
tables of cases, and absent from distributions' Python, so that leaving it out makes machines alike); and build
settings (`_sysconfigdata*`, `config-*`), which are the machine's. The topics of `help()` are documentation kept in one
Python dictionary; each becomes a document of its own.
"""

from __future__ import annotations

import ast
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from chogori.data.document import Document, SkippedFile
from chogori.errors import CorpusError

_SUFFIXES = {".py", ".txt", ".rst"}
_LEFT_OUT_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib-dynload"}
_LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-")
_TOPICS = "pydoc_data/topics.py"
NAME = "python"


def standard_library_files(root: Path | None = None) -> list[Path]:
    """Files of the standard library to read, sorted. In a virtual environment this is the base interpreter's.

    Raises CorpusError when this Python keeps its library elsewhere (frozen or zipped).
    """
    root = root or standard_library_root()
    files: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [n for n in subfolders if n not in _LEFT_OUT_FOLDERS and not n.startswith(_LEFT_OUT_PREFIXES)]
        wanted = (Path(name).suffix in _SUFFIXES and not name.startswith(_LEFT_OUT_PREFIXES) for name in names)
        files += [Path(folder, name) for name, is_wanted in zip(names, wanted, strict=True) if is_wanted]
    if not files:
        raise CorpusError(
            f"{root} holds no Python source: this interpreter keeps its standard library elsewhere. Name a folder of "
            "text with data.paths and turn data.stdlib off."
        )
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def standard_library_root() -> Path:
    """Folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_standard_library(skipped: list[SkippedFile], root: Path | None = None) -> Iterator[Document]:
    """The documents of the standard library in sorted order, named `python/…`; notes in `skipped` what is no UTF-8."""
    root = root or standard_library_root()
    for path in standard_library_files(root):
        relative = path.relative_to(root).as_posix()
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            skipped.append(SkippedFile(f"{NAME}/{relative}", f"not UTF-8 (byte {error.start})"))
            continue
        if relative == _TOPICS:
            topics = _topics(text)
            yield from (Document(f"{NAME}/topics/{topic}", topics[topic]) for topic in sorted(topics))
        else:
            yield Document(f"{NAME}/{relative}", text)


def _topics(source: str) -> dict[str, str]:
    """The dictionary `topics` of pydoc's data, read without running it."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            entries: dict[object, object] = ast.literal_eval(node.value)
            return {str(topic): str(text) for topic, text in entries.items()}
    return {}
