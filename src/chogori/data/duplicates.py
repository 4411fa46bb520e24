"""Duplicates: equal texts by a hash, nearly equal ones by MinHash.

MinHash (Broder 1997): for a random ordering of all shingles, two documents share their first shingle with probability
equal to the Jaccard similarity of their shingle sets; over 128 orderings the share of equal firsts estimates it with a
standard error of at most 0.045. Documents are compared only when one of 16 bands of 8 values agrees (Indyk & Motwani
1998), which misses a pair of similarity 0.8 in 5 % of cases and one of 0.9 in 0.01 %.

A shingle is five words in a row, where a word is a run of letters and digits, one mark, or one CJK character.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chogori.data.document import Document

_NUM_ORDERINGS = 128
_NUM_BANDS = 16
_SHINGLE_WORDS = 5
_BLOCK = 1024  # shingles ordered at a time: 128 × 1024 × 4 bytes stay in the cache
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_WHITE_SPACE = re.compile(r"\s+")

Signature = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A document that was dropped."""

    name: str
    kept: str
    """The earlier document it repeats."""
    exact: bool
    """Whether the texts are equal but for white space and Unicode form."""
    similarity: float
    """Share of five-word sequences in common: 1 for equal texts, else estimated."""


class DuplicateFilter:
    """Remembers the documents it let pass: about 2.5 kB each, or 150 bytes with threshold 1."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: similarity from which a document is a near-duplicate; 1 looks for equal texts only."""
        self._threshold = threshold
        self._exact: dict[bytes, str] = {}
        self._names: list[str] = []
        self._signatures: list[Signature] = []
        self._bands: list[dict[bytes, list[int]]] = [{} for _ in range(_NUM_BANDS)]
        # An ordering is the permutation x -> a·x + b modulo 2³² with a odd, of shingle hashes that are well mixed.
        draws = np.random.RandomState(20250711).randint(0, 2**31, size=(4, _NUM_ORDERINGS)).astype(np.uint32)
        self._multipliers = ((draws[0] << np.uint32(16)) ^ draws[1] | np.uint32(1))[:, None]
        self._offsets = ((draws[2] << np.uint32(16)) ^ draws[3])[:, None]
        self._word_hashes: dict[str, int] = {}

    def check(self, document: Document) -> Duplicate | None:
        """None when the document is new, and it is remembered; else what it repeats."""
        normal = _WHITE_SPACE.sub(" ", unicodedata.normalize("NFC", document.text)).strip()
        digest = hashlib.sha256(normal.encode()).digest()
        if digest in self._exact:
            return Duplicate(document.name, self._exact[digest], True, 1.0)
        if self._threshold < 1:
            signature = self._signature(normal)
            if signature is not None:
                found = self._most_similar(signature)
                if found is not None and found[1] >= self._threshold:
                    return Duplicate(document.name, self._names[found[0]], False, round(found[1], 3))
                self._remember(document.name, signature)
        self._exact[digest] = document.name
        return None

    def _signature(self, text: str) -> Signature | None:
        words: list[str] = _WORD.findall(text)
        if len(words) < _SHINGLE_WORDS:
            return None
        known = self._word_hashes
        if len(known) > 2**20:
            known.clear()
        for word in set(words) - known.keys():
            known[word] = zlib.crc32(word.encode())
        hashes = np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=len(words))
        num_shingles = len(words) - _SHINGLE_WORDS + 1
        shingles = np.zeros(num_shingles, dtype=np.uint64)
        for position in range(_SHINGLE_WORDS):
            # A polynomial of the word hashes, mixed once more below: the order of words counts.
            shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + hashes[position : position + num_shingles]
        shingles = (shingles ^ (shingles >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)
        smallest = np.full(_NUM_ORDERINGS, 2**32 - 1, dtype=np.uint32)
        for start in range(0, num_shingles, _BLOCK):
            ordered = self._multipliers * shingles[start : start + _BLOCK].astype(np.uint32)
            ordered += self._offsets
            np.minimum(smallest, ordered.min(axis=1), out=smallest)
        return smallest

    def _band_keys(self, signature: Signature) -> list[bytes]:
        return [band.tobytes() for band in np.split(signature, _NUM_BANDS)]

    def _most_similar(self, signature: Signature) -> tuple[int, float] | None:
        candidates: set[int] = set()
        for band, key in zip(self._bands, self._band_keys(signature), strict=True):
            candidates.update(band.get(key, ()))
        best: tuple[int, float] | None = None
        for candidate in sorted(candidates):
            similarity = int(np.count_nonzero(self._signatures[candidate] == signature)) / _NUM_ORDERINGS
            if best is None or similarity > best[1]:
                best = (candidate, similarity)
        return best

    def _remember(self, name: str, signature: Signature) -> None:
        for band, key in zip(self._bands, self._band_keys(signature), strict=True):
            band.setdefault(key, []).append(len(self._names))
        self._names.append(name)
        self._signatures.append(signature)
