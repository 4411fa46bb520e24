"""What text a run reads and how it is cut into tokens. Loads nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chogori.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from, which of it is held out, and the vocabulary it is written in."""

    paths: tuple[Path, ...] = ()
    """Folders, globs or files to read: text, code, Markdown, JSONL, Parquet; .gz, .xz and .zst of these too."""
    stdlib: bool = True
    """Also read the source and documentation of the Python standard library that is running (about 12 MB)."""
    dataset: str | None = None
    """A Hugging Face dataset to stream, `name[:config][:split]`, or a local folder in its place; needs `max_bytes`."""
    text_field: str = "text"
    """Field of JSONL records, Parquet columns and datasets that holds the text."""
    max_bytes: int | None = None
    """Stop after this much text in UTF-8 bytes: paths are read first, then the dataset, then the standard library."""
    near_duplicates: float = 0.8
    """Drop a document whose five-word sequences overlap an earlier one's by this share or more; 1 drops equals only."""
    heldout_share: float = 0.05
    """Share of documents, chosen by their names, that training never sees."""
    heldout_bytes: int = 1_000_000
    """Size limit of the held-out text in UTF-8 bytes; chosen documents beyond it are neither trained nor tested on."""
    tokenizer: Path | None = None
    """A vocabulary to use as it is: a saved tokenizer's folder, or K2's tiktoken.model. Then none is trained."""
    vocab_size: int = 8192
    """Size of the vocabulary trained when `tokenizer` is not given, special tokens included."""
    tokenizer_bytes: int = 32_000_000
    """Train the vocabulary on at most about this many bytes, whole documents chosen by their names."""
    shard_tokens: int = 2**24
    """Tokens in a shard file, after which a new one begins (a document is never divided)."""
    seed: int = 0
    """Order in which training reads the documents. The shards on disk do not depend on it."""

    def __post_init__(self) -> None:
        if not self.paths and not self.stdlib and self.dataset is None:
            raise ConfigError(
                "data names no text: paths is empty, dataset is not given and stdlib is False; name a folder with "
                "data.paths or leave data.stdlib on"
            )
        if self.dataset is not None and self.max_bytes is None:
            raise ConfigError(
                f"data.dataset is {self.dataset!r} without a limit, which would download all of it; say how much to "
                "read, such as data.max_bytes=100000000"
            )
        if not 0 < self.heldout_share < 1:
            raise ConfigError(f"data.heldout_share is {self.heldout_share}; expected between 0 and 1, such as 0.05")
        if not 0.7 <= self.near_duplicates <= 1:
            raise ConfigError(
                f"data.near_duplicates is {self.near_duplicates}; expected 0.7 to 1 (below 0.7 most pairs would be "
                "missed), such as 0.8"
            )
        for name in ("vocab_size", "tokenizer_bytes", "heldout_bytes", "shard_tokens", "max_bytes"):
            value: int | None = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name} is {value}; expected at least 1")
        if not self.text_field:
            raise ConfigError('data.text_field is empty; expected the name of a field, such as "text"')
