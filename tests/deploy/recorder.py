"""Programs that write down how they were called instead of doing anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """#!{python}
import json, os, sys
with open({record!r}, "a", encoding="utf-8") as file:
    file.write(json.dumps([[{name!r}, *sys.argv[1:]], dict(os.environ)]) + "\\n")
"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a program."""

    words: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """A folder of stand-in programs and what they recorded."""

    folder: Path

    def stand_in(self, *names: str) -> None:
        """Record calls of programs called `names`."""
        for name in names:
            text = _PROGRAM.format(python=sys.executable, record=str(self.record), name=name)
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        """A program of one's own."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def run(self, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `words` with the stand-ins first on PATH, and wait."""
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            words, env={"PATH": path, **environment}, capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def calls(self) -> list[Call]:
        """Every call so far, in order."""
        if not self.record.exists():
            return []
        lines = self.record.read_text(encoding="utf-8").splitlines()
        return [Call(words=words, environment=environment) for words, environment in map(json.loads, lines)]

    @property
    def record(self) -> Path:
        """A line for each call."""
        return self.folder / "calls.jsonl"
