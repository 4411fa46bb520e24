"""The manifest of a prepared corpus: what went in, what was left out, what came out. Written last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from chogori.data.document import SkippedFile
from chogori.data.duplicates import Duplicate
from chogori.errors import ShardError

FILE_NAME = "manifest.json"
FORMAT = 1
"""Raised when shards, split or packing of equal settings change, so that older folders are made anew."""


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """One side of the split."""

    documents: int
    bytes: int
    """UTF-8 bytes of text."""
    tokens: int
    """[BOS] and [EOS] of each document included."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Facts about a prepared corpus, as `manifest.json` holds them."""

    format: int
    signature: str
    """Of the settings and the source files; a folder with the same one is used as it is."""
    settings: dict[str, object]
    """The DataConfig that shards depend on."""
    tokenizer_fingerprint: str
    vocab_size: int
    num_merges: int
    """Tokens of more than one byte that the vocabulary has."""
    train: SplitCounts
    heldout: SplitCounts
    heldout_unused_documents: int
    """Chosen for the held-out text, but beyond its size limit: neither trained nor tested on."""
    heldout_unused_bytes: int
    documents_read: int
    bytes_read: int
    truncated: bool
    """Whether reading stopped at max_bytes."""
    empty_documents: int
    """Nothing but white space; not counted as read."""
    exact_duplicates: int
    near_duplicates: int
    duplicates: tuple[Duplicate, ...]
    """The first hundred that were dropped."""
    skipped_files: int
    skipped: tuple[SkippedFile, ...]
    """The first thousand files that are no text, or hidden."""
    bytes_per_token: float
    """UTF-8 bytes of the training text over its tokens, [BOS] and [EOS] not counted."""
    bytes_per_token_by_language: dict[str, float]
    """On the short samples of chogori.chat.language_samples."""
    heldout_xz_bits_per_byte: float
    heldout_zstd_bits_per_byte: float | None
    """None when the package zstandard was not installed."""
    train_shards: tuple[str, ...]
    """File names in order."""
    heldout_shards: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The JSON document."""
        return (json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n").encode(errors="surrogateescape")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None when there is none or it is of another format.

        Raises ShardError when it cannot be read.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            return None
        try:
            entries = cast(dict[str, Any], json.loads(path.read_bytes().decode(errors="surrogateescape")))
            if entries["format"] != FORMAT:
                return None
            entries["train"] = SplitCounts(**entries["train"])
            entries["heldout"] = SplitCounts(**entries["heldout"])
            entries["duplicates"] = tuple(Duplicate(**entry) for entry in entries["duplicates"])
            entries["skipped"] = tuple(SkippedFile(**entry) for entry in entries["skipped"])
            entries["train_shards"] = tuple(entries["train_shards"])
            entries["heldout_shards"] = tuple(entries["heldout_shards"])
            return cls(**entries)
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{path} is damaged ({error}). Delete it and run again: it is made anew.") from error
