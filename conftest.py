"""Runs every Python block of the README and of docs/ as a test, each file in a folder of its own."""

import os
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


def enter_scratch_folder(namespace: dict[str, Any]) -> None:
    """Blocks of one page share names and may write files; neither reaches another page or the working tree."""
    namespace["_scratch"] = tempfile.TemporaryDirectory(prefix="chogori-docs-")
    namespace["_came_from"] = Path.cwd()
    os.chdir(namespace["_scratch"].name)


def leave_scratch_folder(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_came_from"])
    namespace["_scratch"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "README.ja.md", "docs/*.md"],
    setup=enter_scratch_folder,
    teardown=leave_scratch_folder,
).pytest()
