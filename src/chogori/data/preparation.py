"""A corpus to a folder of token shards: read, deduplicate, split, train the vocabulary, encode, measure.

The folder holds tokenizer/, train-00000.bin …, heldout-00000.bin … and, written last, manifest.json. A folder whose
manifest matches the settings and the source files is used as it is; any other is made anew, from the start, to the same
bytes each time, so a kill at any moment costs only time. A lock on the folder makes a second process wait.

Documents pass through a spool file on disk, so the corpus need not fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chogori.chat.language_samples import SAMPLES
from chogori.chat.tokenizer import Tokenizer, bytes_per_token
from chogori.data import manifest as manifests
from chogori.data.compression import xz_bits_per_byte, zstd_bits_per_byte
from chogori.data.config import DataConfig
from chogori.data.corpus import PASSED_OVER, Corpus
from chogori.data.document import Document, SkippedFile, stable_share
from chogori.data.duplicates import Duplicate, DuplicateFilter
from chogori.data.manifest import Manifest, SplitCounts
from chogori.data.shards import ShardSet, Tokens, token_dtype, write_shard
from chogori.data.splitting import split_documents
from chogori.data.spool import Spool
from chogori.durable_files import PARTIAL_SUFFIX, disk_errors, exclusive, write_atomically
from chogori.errors import CorpusError, ShardError

TOKENIZER_FOLDER = "tokenizer"
_ENCODED_AT_ONCE_BYTES = 2**23
_LISTED_DUPLICATES = 100
_LISTED_SKIPPED = 1000

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A prepared corpus, opened."""

    folder: Path
    tokenizer: Tokenizer
    train: ShardSet
    heldout: ShardSet
    manifest: Manifest


def prepare(config: DataConfig, folder: Path, *, progress: Progress | None = None) -> PreparedData:
    """Prepare a corpus in `folder`, or open what is there when it was made from the same settings and files.

    Raises CorpusError (no text, not text), TokenizerError (config.tokenizer), StorageError (disk full), ShardError (a
    whole folder was altered afterwards). Warns once when files inside a folder were skipped.
    """
    corpus = Corpus(config)
    tokenizer = None if config.tokenizer is None else Tokenizer.load(config.tokenizer)
    settings = _settings(config)
    signature = _signature(settings, corpus, tokenizer)
    with exclusive(folder):
        manifest = Manifest.read(folder)
        if manifest is None or manifest.signature != signature or _missing(folder, manifest):
            report = progress or _report_nothing
            _Preparation(config, settings, signature, corpus, tokenizer, folder, report).run()
    return open_prepared(folder)


def open_prepared(folder: Path) -> PreparedData:
    """Open a prepared corpus without looking at where it came from. Raises ShardError when it is not whole."""
    manifest = Manifest.read(folder)
    if manifest is None:
        raise ShardError(f"{folder} holds no prepared corpus (no {manifests.FILE_NAME} of this version); prepare it.")
    tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise ShardError(
            f"{folder / TOKENIZER_FOLDER} is not the tokenizer that the shards were made with. Delete "
            f"{folder / manifests.FILE_NAME} and run again: all is made anew."
        )
    return PreparedData(
        folder=folder,
        tokenizer=tokenizer,
        train=ShardSet.open([folder / name for name in manifest.train_shards]),
        heldout=ShardSet.open([folder / name for name in manifest.heldout_shards]),
        manifest=manifest,
    )


def _report_nothing(_stage: str, _share: float) -> None:
    pass


def _settings(config: DataConfig) -> dict[str, object]:
    """The settings that prepared data depends on, as JSON knows them; not the seed, which only orders reading."""
    entries = asdict(config)
    del entries["seed"]
    entries["paths"] = [str(path) for path in config.paths]
    entries["tokenizer"] = None if config.tokenizer is None else str(config.tokenizer)
    return entries


def _signature(settings: dict[str, object], corpus: Corpus, tokenizer: Tokenizer | None) -> str:
    parts = [manifests.FORMAT, settings, corpus.signature(), None if tokenizer is None else tokenizer.fingerprint]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _missing(folder: Path, manifest: Manifest) -> bool:
    names = (*manifest.train_shards, *manifest.heldout_shards, f"{TOKENIZER_FOLDER}/tokenizer.json")
    return not all((folder / name).is_file() for name in names)


@dataclass(kw_only=True)
class _Reading:
    """What reading the corpus found, beside the documents themselves."""

    documents: int = 0
    bytes: int = 0
    truncated: bool = False
    exact_duplicates: int = 0
    near_duplicates: int = 0


class _Preparation:
    """One making of a prepared folder, stage by stage."""

    def __init__(
        self,
        config: DataConfig,
        settings: dict[str, object],
        signature: str,
        corpus: Corpus,
        tokenizer: Tokenizer | None,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._config = config
        self._settings = settings
        self._signature = signature
        self._corpus = corpus
        self._given_tokenizer = tokenizer
        self._folder = folder
        self._progress = progress
        self._duplicates: list[Duplicate] = []

    def run(self) -> None:
        config, folder = self._config, self._folder
        self._clear()
        with Spool(folder / f"documents{PARTIAL_SUFFIX}") as spool:
            reading = self._read(spool)
            split = split_documents(spool, heldout_share=config.heldout_share, heldout_bytes=config.heldout_bytes)
            tokenizer = self._given_tokenizer or self._train_tokenizer(spool, split.train)
            self._write_tokenizer(tokenizer)
            train_shards, train = self._write_shards("train", spool, split.train, tokenizer)
            heldout_shards, heldout = self._write_shards("heldout", spool, split.heldout, tokenizer)
            self._progress("compressing the held-out text for comparison", 0.0)
            heldout_text = b"".join(spool.content(number) for number in split.heldout)
            manifest = Manifest(
                format=manifests.FORMAT,
                signature=self._signature,
                settings=self._settings,
                tokenizer_fingerprint=tokenizer.fingerprint,
                vocab_size=tokenizer.vocab_size,
                num_merges=tokenizer.num_merges,
                train=train,
                heldout=heldout,
                heldout_unused_documents=len(split.unused),
                heldout_unused_bytes=sum(spool.sizes[number] for number in split.unused),
                documents_read=reading.documents,
                bytes_read=reading.bytes,
                truncated=reading.truncated,
                empty_documents=self._corpus.num_empty,
                exact_duplicates=reading.exact_duplicates,
                near_duplicates=reading.near_duplicates,
                duplicates=tuple(self._duplicates),
                skipped_files=len(self._corpus.skipped),
                skipped=tuple(self._corpus.skipped[:_LISTED_SKIPPED]),
                bytes_per_token=train.bytes / (train.tokens - 2 * train.documents),
                bytes_per_token_by_language=bytes_per_token(tokenizer, SAMPLES),
                heldout_xz_bits_per_byte=xz_bits_per_byte(heldout_text),
                heldout_zstd_bits_per_byte=zstd_bits_per_byte(heldout_text),
                train_shards=train_shards,
                heldout_shards=heldout_shards,
            )
        write_atomically(folder / manifests.FILE_NAME, [manifest.to_bytes()])
        self._progress("compressing the held-out text for comparison", 1.0)

    def _clear(self) -> None:
        """Remove an older preparation, its manifest first, and what a killed one left."""
        with disk_errors(f"write {self._folder}"):
            (self._folder / manifests.FILE_NAME).unlink(missing_ok=True)
            for pattern in ("train-*.bin", "heldout-*.bin", f"*{PARTIAL_SUFFIX}", f"{TOKENIZER_FOLDER}/*"):
                for path in self._folder.glob(pattern):
                    path.unlink()

    def _read(self, spool: Spool) -> _Reading:
        reading = _Reading()
        duplicates = DuplicateFilter(self._config.near_duplicates)
        expected = self._corpus.expected_bytes()
        for document in self._limited(reading):
            duplicate = duplicates.check(document)
            if duplicate is None:
                spool.append(document)
            else:
                reading.exact_duplicates += duplicate.exact
                reading.near_duplicates += not duplicate.exact
                if len(self._duplicates) < _LISTED_DUPLICATES:
                    self._duplicates.append(duplicate)
            self._progress("reading documents", min(1.0, reading.bytes / expected))
        self._warn_of_skipped(self._corpus.skipped)
        if not spool.names:
            raise CorpusError(
                f"the corpus holds no text: {self._corpus.num_files} files were found in data.paths and "
                f"{len(self._corpus.skipped)} skipped. Expected UTF-8 text, code, JSONL or Parquet; name another "
                "folder with data.paths, or turn data.stdlib on."
            )
        return reading

    def _limited(self, reading: _Reading) -> Iterator[Document]:
        """Documents up to max_bytes, the last one cut there; counts them."""
        limit = self._config.max_bytes
        for document in self._corpus.documents():
            size = len(document.text.encode())
            reading.documents += 1
            if limit is not None and reading.bytes + size > limit:
                reading.truncated = True
                start = document.text.encode()[: limit - reading.bytes].decode(errors="ignore")
                reading.bytes = limit
                if start.strip():
                    yield Document(document.name, start)
                return
            reading.bytes += size
            yield document

    def _warn_of_skipped(self, skipped: Sequence[SkippedFile]) -> None:
        unread = [file for file in skipped if file.reason != PASSED_OVER]
        if not unread:
            return
        reasons = Counter(file.reason.partition(" (")[0] for file in unread)
        named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        warnings.warn(
            f"{len(unread)} files are no text and were skipped ({named}), the first being {unread[0].name}; "
            f"{self._folder / manifests.FILE_NAME} lists them.",
            stacklevel=5,
        )

    def _train_tokenizer(self, spool: Spool, numbers: Sequence[int]) -> Tokenizer:
        self._progress("training the vocabulary", 0.0)
        total = sum(spool.sizes[number] for number in numbers)
        share = self._config.tokenizer_bytes / total
        sample = [n for n in numbers if share >= 1 or stable_share(spool.names[n], "vocabulary") < share]
        tokenizer = Tokenizer.train(spool.texts(sample or numbers[:1]), vocab_size=self._config.vocab_size)
        self._progress("training the vocabulary", 1.0)
        return tokenizer

    def _write_tokenizer(self, tokenizer: Tokenizer) -> None:
        folder = self._folder / TOKENIZER_FOLDER
        with disk_errors(f"write {folder}"):
            folder.mkdir(exist_ok=True)
        for name, content in tokenizer.files().items():
            write_atomically(folder / name, [content])

    def _write_shards(
        self, kind: str, spool: Spool, numbers: Sequence[int], tokenizer: Tokenizer
    ) -> tuple[tuple[str, ...], SplitCounts]:
        token_bytes = np.asarray(tokenizer.token_lengths(), dtype=np.uint32)
        names: list[str] = []
        documents: list[Tokens] = []
        sizes: list[int] = []
        num_tokens = num_tokens_held = 0

        def write() -> None:
            names.append(f"{kind}-{len(names):05d}.bin")
            write_shard(self._folder / names[-1], documents, sizes, token_bytes)
            documents.clear()
            sizes.clear()

        for number, tokens in self._encode(kind, spool, numbers, tokenizer):
            if documents and num_tokens_held + len(tokens) > self._config.shard_tokens:
                write()
                num_tokens_held = 0
            documents.append(tokens)
            sizes.append(spool.sizes[number])
            num_tokens += len(tokens)
            num_tokens_held += len(tokens)
        write()
        total_bytes = sum(spool.sizes[number] for number in numbers)
        return tuple(names), SplitCounts(documents=len(numbers), bytes=total_bytes, tokens=num_tokens)

    def _encode(
        self, kind: str, spool: Spool, numbers: Sequence[int], tokenizer: Tokenizer
    ) -> Iterator[tuple[int, Tokens]]:
        """Each document as [BOS] text [EOS], encoded some megabytes at a time on all processors."""
        dtype = token_dtype(tokenizer.vocab_size)
        stage = f"encoding the {'training' if kind == 'train' else 'held-out'} text"
        total = sum(spool.sizes[number] for number in numbers)
        group: list[int] = []
        group_bytes = done_bytes = 0

        def encode_group() -> Iterator[tuple[int, Tokens]]:
            for number, ids in zip(group, tokenizer.encode_batch(list(spool.texts(group))), strict=True):
                yield number, np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype=dtype)

        for number in numbers:
            group.append(number)
            group_bytes += spool.sizes[number]
            if group_bytes >= _ENCODED_AT_ONCE_BYTES:
                yield from encode_group()
                done_bytes += group_bytes
                group, group_bytes = [], 0
                self._progress(stage, done_bytes / total)
        yield from encode_group()
        self._progress(stage, 1.0)
