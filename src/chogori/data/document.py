"""A document: a named piece of text, which is what is deduplicated, held out and packed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus."""

    name: str
    """Stable name: the path from the folder that was given, that folder's own name included; `#n` for record n."""
    text: str


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file inside a folder that was not read."""

    name: str
    reason: str


def stable_share(name: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the name and the purpose alone, evenly spread over names.

    A choice made by it (held out or not) stays when other documents come or go.
    """
    # surrogateescape: names of files need not be UTF-8
    digest = hashlib.sha256(f"{purpose}\0{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
