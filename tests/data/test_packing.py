"""Packing against its definition: each pair of neighbouring tokens of each document once, and none across documents."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.data.packing import IGNORE_INDEX, Batch, PackingPlan
from chogori.data.shards import ShardSet, write_shard


def make_shards(folder: Path, lengths: list[int]) -> ShardSet:
    """Documents whose tokens are all different, so that a pair tells where it came from. Each token is 3 bytes."""
    vocab_size = sum(lengths) + 1
    starts = np.cumsum([0, *lengths])
    documents = [np.arange(start, start + n, dtype=np.uint16) for start, n in zip(starts, lengths, strict=False)]
    path = folder / "shard.bin"
    write_shard(path, documents, [3 * n for n in lengths], np.full(vocab_size, 3, dtype=np.uint32))
    return ShardSet.open([path])


def pairs_of(batch: Batch) -> list[tuple[int, int]]:
    valid = batch.targets_BT != IGNORE_INDEX
    return list(zip(batch.tokens_BT[valid].tolist(), batch.targets_BT[valid].tolist(), strict=True))


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12), sequence_length=st.integers(1, 30))
def test_every_pair_once_and_documents_told_apart(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], sequence_length: int
) -> None:
    shards = make_shards(tmp_path_factory.mktemp("packing"), lengths)
    order = np.arange(len(lengths))[::-1].copy()
    plan = PackingPlan(shards, order, sequence_length)
    batch = plan.batch(list(range(plan.num_rows + 1)))
    expected = [
        (int(a), int(b)) for n in order for a, b in zip(shards.document(n)[:-1], shards.document(n)[1:], strict=True)
    ]
    assert pairs_of(batch) == expected
    assert batch.num_targets == plan.num_pairs == shards.num_targets == len(expected)
    assert batch.num_bytes == 3 * len(expected)
    assert (batch.targets_BT[-1] == IGNORE_INDEX).all(), "a row past the end is padding throughout"
    assert not (batch.targets_BT[: plan.num_rows - 1] == IGNORE_INDEX).any(), "only the last row is padded"
    ends = np.cumsum(lengths)
    for tokens_T, targets_T, documents_T in zip(batch.tokens_BT, batch.targets_BT, batch.documents_BT, strict=True):
        valid = targets_T != IGNORE_INDEX
        source = np.searchsorted(ends, tokens_T, side="right")
        same_source = source[:, None] == source
        same_number = documents_T[:, None] == documents_T
        assert (same_source == same_number)[np.ix_(valid, valid)].all(), "one number for one document of the row"
        assert not same_number[np.ix_(valid, ~valid)].any(), "padding is a document of its own"
        assert (np.diff(documents_T) >= 0).all()


def test_by_hand(tmp_path: Path) -> None:
    plan = PackingPlan(make_shards(tmp_path, [4, 3, 6]), np.arange(3), 4)
    batch = plan.batch([0, 1, 2])
    assert batch.tokens_BT.tolist() == [[0, 1, 2, 4], [5, 7, 8, 9], [10, 11, 0, 0]]
    assert batch.targets_BT.tolist() == [[1, 2, 3, 5], [6, 8, 9, 10], [11, 12, -100, -100]]
    assert batch.documents_BT.tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert (batch.num_targets, batch.num_bytes) == (10, 30)
    assert (batch.tokens_BT.dtype, batch.targets_BT.dtype, batch.documents_BT.dtype) == (np.int64, np.int64, np.int32)
