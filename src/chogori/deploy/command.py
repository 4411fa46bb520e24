"""A command line as data, and as the bash that runs it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field


class Expansion(str):
    """Text that bash expands when it runs, such as `${HEAD_ADDRESS}:50000`. Holds no quotes or backslashes."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Command:
    """One program to run."""

    words: tuple[str, ...]
    """Program and arguments; an `Expansion` is expanded by bash, everything else means itself."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables set for it."""
    preparation: str = ""
    """Bash that runs before it, such as one that writes a file it reads."""

    def as_bash(self) -> str:
        """The command over several lines, one option with its values on each."""
        lines = ["exec"]
        if self.environment:
            settings = " ".join(f"{name}={bash_word(value)}" for name, value in self.environment.items())
            lines = [f"exec env {settings}"]
        for index, word in enumerate(self.words):
            if index and word.startswith("-"):
                lines.append(f"  {bash_word(word)}")
            else:
                lines[-1] += f" {bash_word(word)}"
        command = " \\\n".join(lines)
        return f"{self.preparation}{command}\n"


def bash_word(word: str) -> str:
    """One word as bash reads it back."""
    return f'"{word}"' if isinstance(word, Expansion) else shlex.quote(word)
