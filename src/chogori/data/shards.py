"""Token shards: documents as arrays of token ids in memory-mapped files with a checksum.

A shard file is, little-endian:
    header   128 bytes: magic, then num_documents, num_tokens, vocab_size, bytes per token (u64 each), SHA-256 of the
             payload (32 bytes), SHA-256 of the header up to here (32 bytes), zeros
    payload  first token of each document and the end of the last (num_documents + 1 u64) · UTF-8 bytes of each
             document (u64) · UTF-8 bytes that each id of the vocabulary stands for (vocab_size u32; 0 for special
             tokens) · tokens (u16 up to a vocabulary of 65,536, else u32)
A document is stored as [BOS] text [EOS].
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chogori.durable_files import write_atomically
from chogori.errors import ShardError

_MAGIC = b"CHOGORI1"
_HEADER = struct.Struct("<8s4Q32s")
_HEADER_BYTES = 128
_READ_BYTES = 2**22

Tokens = npt.NDArray[np.uint16 | np.uint32]


def token_dtype(vocab_size: int) -> np.dtype[np.uint16 | np.uint32]:
    """The smallest type a shard keeps ids of this vocabulary in."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def write_shard(
    path: Path,
    documents: Sequence[Tokens],
    document_bytes: Sequence[int],
    token_bytes: npt.NDArray[np.uint32],
) -> str:
    """Write one shard and return its checksum (SHA-256 of the payload, hexadecimal).

    documents: token ids of each document, [BOS] and [EOS] included; document_bytes: its length in UTF-8;
    token_bytes: UTF-8 length of each id of the vocabulary. Raises StorageError when the disk is full.
    """
    vocab_size = len(token_bytes)
    offsets = np.zeros(len(documents) + 1, dtype="<u8")
    np.cumsum([len(document) for document in documents], out=offsets[1:])
    tokens = np.concatenate(documents).astype(token_dtype(vocab_size), copy=False)
    assert int(token_bytes[tokens].sum()) == sum(document_bytes), "tokens do not add up to the text"
    pieces = [
        offsets.tobytes(),
        np.asarray(document_bytes, dtype="<u8").tobytes(),
        token_bytes.astype("<u4").tobytes(),
        tokens.tobytes(),
    ]
    payload = hashlib.sha256()
    for piece in pieces:
        payload.update(piece)
    fields = _HEADER.pack(_MAGIC, len(documents), len(tokens), vocab_size, tokens.dtype.itemsize, payload.digest())
    header = (fields + hashlib.sha256(fields).digest()).ljust(_HEADER_BYTES, b"\0")
    write_atomically(path, [header, *pieces])
    return payload.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One opened file. Arrays are views of the mapped file, read on demand."""

    path: Path
    checksum: str
    offsets: npt.NDArray[np.uint64]
    document_bytes: npt.NDArray[np.uint64]
    token_bytes: npt.NDArray[np.uint32]
    tokens: Tokens

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Shard:
        """Map a shard; with `verify`, read all of it once (over 1 GB/s) and compare its checksum.

        Raises ShardError, with the fix, when the file is missing, truncated, altered or of another kind.
        """
        fix = "Delete it and run again: it is made anew from the corpus."
        if not path.is_file():
            raise ShardError(f"{path} is missing; expected a token shard. Run again: it is made anew from the corpus.")
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        fields = header[: _HEADER.size]
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            raise ShardError(f"{path} does not begin as a token shard does. {fix}")
        if hashlib.sha256(fields).digest() != header[_HEADER.size : _HEADER.size + 32]:
            raise ShardError(f"{path} has a damaged header. {fix}")
        _, num_documents, num_tokens, vocab_size, itemsize, checksum = _HEADER.unpack(fields)
        expected = _HEADER_BYTES + 8 * (2 * num_documents + 1) + 4 * vocab_size + itemsize * num_tokens
        found = path.stat().st_size
        if found != expected:
            kind = "truncated" if found < expected else "too long"
            raise ShardError(f"{path} is {kind}: {found:,} bytes, expected {expected:,}. {fix}")
        if verify and _checksum(path) != checksum:
            raise ShardError(f"{path} has been altered since it was written: its checksum differs. {fix}")
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        start = _HEADER_BYTES
        views: list[npt.NDArray[np.uint8]] = []
        for size in (8 * (num_documents + 1), 8 * num_documents, 4 * vocab_size, itemsize * num_tokens):
            views.append(mapped[start : start + size])
            start += size
        return cls(
            path=path,
            checksum=checksum.hex(),
            offsets=views[0].view(np.uint64),
            document_bytes=views[1].view(np.uint64),
            token_bytes=views[2].view(np.uint32),
            tokens=views[3].view(np.uint16) if itemsize == 2 else views[3].view(np.uint32),
        )


class ShardSet:
    """Documents of several shards, numbered through from 0. Reading from many threads is safe."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Raises ShardError when there is no shard, or when shards come from different vocabularies."""
        if not shards:
            raise ShardError("no token shards were given; expected at least one. Prepare the corpus again.")
        self._shards = list(shards)
        self._token_bytes = np.array(shards[0].token_bytes)
        for shard in shards[1:]:
            if not np.array_equal(shard.token_bytes, self._token_bytes):
                raise ShardError(
                    f"{shard.path} was made with another vocabulary than {shards[0].path}; delete the folder and "
                    "prepare the corpus again."
                )
        self._first_document = np.cumsum([0, *(len(shard.document_bytes) for shard in shards)])
        self._document_lengths = np.concatenate([np.diff(shard.offsets.astype(np.int64)) for shard in shards])
        self._num_bytes = sum(int(shard.document_bytes.sum()) for shard in shards)
        digest = hashlib.sha256("".join(shard.checksum for shard in shards).encode())
        self._fingerprint = digest.hexdigest()

    @classmethod
    def open(cls, paths: Sequence[Path], *, verify: bool = True) -> ShardSet:
        """Open shard files in the order given; `verify` as in `Shard.open`. Raises ShardError."""
        return cls([Shard.open(path, verify=verify) for path in paths])

    @property
    def num_documents(self) -> int:
        """Documents in all shards."""
        return len(self._document_lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards, [BOS] and [EOS] of each document included."""
        return int(self._document_lengths.sum())

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted in one pass: all but the [BOS] of each document."""
        return self.num_tokens - self.num_documents

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text in all shards."""
        return self._num_bytes

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary that the tokens are of."""
        return len(self._token_bytes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the checksums of all shards: equal for equal tokens."""
        return self._fingerprint

    @property
    def document_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, [BOS] and [EOS] included."""
        return self._document_lengths

    @property
    def token_bytes(self) -> npt.NDArray[np.uint32]:
        """UTF-8 bytes that each id stands for, 0 for special tokens: sums to the size of a text exactly."""
        return self._token_bytes

    def document(self, number: int) -> Tokens:
        """Token ids of one document: a read-only view of the mapped file."""
        which = int(np.searchsorted(self._first_document, number, side="right")) - 1
        shard = self._shards[which]
        local = number - int(self._first_document[which])
        return shard.tokens[int(shard.offsets[local]) : int(shard.offsets[local + 1])]


def _checksum(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(_HEADER_BYTES)
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.digest()
