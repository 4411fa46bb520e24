"""Shards give back what was written, and any damage is a ShardError that names the file and the fix."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.data.shards import Shard, ShardSet, token_dtype, write_shard
from chogori.errors import ShardError

FIX = r"Delete it and run again: it is made anew from the corpus"


def write(path: Path, documents: list[list[int]], vocab_size: int = 300) -> str:
    """Ids below 256 stand for one byte each, others for none."""
    token_bytes = np.array([1] * 256 + [0] * (vocab_size - 256), dtype=np.uint32)
    sizes = [sum(i < 256 for i in document) for document in documents]
    arrays = [np.array(document, dtype=token_dtype(vocab_size)) for document in documents]
    return write_shard(path, arrays, sizes, token_bytes)


DOCUMENTS = [[256, 1, 2, 3, 257], [256, 257], [256, 9, 9, 257]]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "train-00000.bin"
    write(path, DOCUMENTS)
    return path


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(300, 2), (65_536, 2), (65_537, 4), (163_840, 4)])
def test_type_follows_the_vocabulary(tmp_path: Path, vocab_size: int, itemsize: int) -> None:
    path = tmp_path / "shard.bin"
    largest = vocab_size - 1
    write(path, [[largest, 0, largest]], vocab_size)
    shards = ShardSet.open([path])
    assert shards.document(0).tolist() == [largest, 0, largest]
    assert shards.document(0).dtype.itemsize == itemsize
    assert shards.vocab_size == vocab_size


@given(st.lists(st.lists(st.lists(st.integers(0, 299), min_size=1), min_size=1, max_size=6), min_size=1, max_size=4))
def test_documents_survive(groups: list[list[list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{n}.bin") for n in range(len(groups))]
        for path, group in zip(paths, groups, strict=True):
            write(path, group)
        shards = ShardSet.open(paths)
        documents = [document for group in groups for document in group]
        assert [shards.document(n).tolist() for n in range(shards.num_documents)] == documents
        assert shards.document_lengths.tolist() == [len(document) for document in documents]
        assert shards.num_tokens == sum(map(len, documents))
        assert shards.num_targets == shards.num_tokens - len(documents)
        assert shards.num_bytes == sum(i < 256 for document in documents for i in document)


def test_fingerprint_is_of_the_content(tmp_path: Path, shard: Path) -> None:
    copy = tmp_path / "copy.bin"
    assert write(copy, DOCUMENTS) == Shard.open(shard).checksum
    assert copy.read_bytes() == shard.read_bytes()
    assert ShardSet.open([copy]).fingerprint == ShardSet.open([shard]).fingerprint
    write(copy, [*DOCUMENTS[:2], [256, 9, 8, 257]])
    assert ShardSet.open([copy]).fingerprint != ShardSet.open([shard]).fingerprint


def test_every_flipped_bit_is_noticed(shard: Path) -> None:
    content = shard.read_bytes()
    places = [*range(104), *random.Random(0).sample(range(128, len(content)), 100), len(content) - 1]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        shard.write_bytes(damaged)
        with pytest.raises(ShardError, match=rf"train-00000\.bin .*{FIX}"):
            Shard.open(shard)


def test_every_truncation_is_noticed(shard: Path) -> None:
    content = shard.read_bytes()
    for size in (0, 7, 100, 128, 200, len(content) - 1):
        shard.write_bytes(content[:size])
        with pytest.raises(ShardError, match=rf"train-00000\.bin (is truncated|does not begin).*{FIX}"):
            Shard.open(shard, verify=False)
    shard.write_bytes(content + b"\0")
    with pytest.raises(ShardError, match=rf"is too long: {len(content) + 1:,} bytes, expected {len(content):,}"):
        Shard.open(shard)


def test_missing_and_foreign_files_are_named(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(ShardError, match=r"nothing\.bin is missing.*Run again"):
        Shard.open(tmp_path / "nothing.bin")
    with pytest.raises(ShardError, match="no token shards were given"):
        ShardSet([])
    write(tmp_path / "other.bin", DOCUMENTS, vocab_size=301)
    with pytest.raises(ShardError, match=r"other\.bin was made with another vocabulary than .*train-00000\.bin"):
        ShardSet.open([shard, tmp_path / "other.bin"])


def test_tokens_that_do_not_add_up_are_our_own_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="do not add up"):
        write_shard(tmp_path / "x", [np.array([1], dtype=np.uint16)], [2], np.ones(300, dtype=np.uint32))
