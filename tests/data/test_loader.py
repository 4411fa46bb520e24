"""The loader: every target once an epoch, the same batches always, and resuming anywhere changes nothing."""

import threading
import time
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chogori.data import IGNORE_INDEX, Batch, PackedLoader, PreparedData, ShardSet, heldout_batches
from chogori.data.loader import shuffled
from chogori.errors import CheckpointError, ConfigError


def make(
    shards: ShardSet, batch_size: int = 3, sequence_length: int = 64, seed: int = 7, shuffle: bool = True
) -> PackedLoader:
    return PackedLoader(shards, batch_size=batch_size, sequence_length=sequence_length, seed=seed, shuffle=shuffle)


def take(loader: PackedLoader, count: int) -> list[Batch]:
    with loader:
        return [loader.next_batch() for _ in range(count)]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name in ("tokens_BT", "targets_BT", "documents_BT"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert (a.num_targets, a.num_bytes) == (b.num_targets, b.num_bytes)


def count_pairs(batches: list[Batch]) -> Counter[tuple[int, int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        valid = batch.targets_BT != IGNORE_INDEX
        pairs.update(zip(batch.tokens_BT[valid].tolist(), batch.targets_BT[valid].tolist(), strict=True))
    return pairs


def all_pairs(shards: ShardSet) -> Counter[tuple[int, int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    for number in range(shards.num_documents):
        document = shards.document(number).tolist()
        pairs.update(pairwise(document))
    return pairs


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_target_once(prepared: PreparedData, shuffle: bool) -> None:
    loader = make(prepared.train, batch_size=1, sequence_length=200, shuffle=shuffle)
    rows = take(loader, 2 * loader.rows_per_epoch)
    first, second = rows[: loader.rows_per_epoch], rows[loader.rows_per_epoch :]
    assert sum(batch.num_targets for batch in first) == prepared.train.num_targets
    assert sum(batch.num_bytes for batch in first) == prepared.train.num_bytes
    expected = all_pairs(prepared.train)
    assert count_pairs(first) == expected
    assert count_pairs(second) == expected
    same = all(np.array_equal(a.tokens_BT, b.tokens_BT) for a, b in zip(first, second, strict=True))
    assert same != shuffle, "epochs are shuffled anew"


@settings(max_examples=25)
@given(
    batch_size=st.integers(1, 5),
    sequence_length=st.sampled_from([16, 500, 40_000]),
    before=st.integers(0, 12),
    after=st.integers(1, 6),
    shuffle=st.booleans(),
)
def test_resuming_after_any_batch_changes_nothing(
    prepared: PreparedData, batch_size: int, sequence_length: int, before: int, after: int, shuffle: bool
) -> None:
    """40,000 tokens a row make a handful of rows an epoch, so that resuming crosses epochs too."""
    whole = take(make(prepared.train, batch_size, sequence_length, shuffle=shuffle), before + after)
    with make(prepared.train, batch_size, sequence_length, shuffle=shuffle) as first:
        for _ in range(before):
            first.next_batch()
        state = first.state_dict()
        epoch = first.epoch
    assert all(type(value) is int for value in state.values()), "plain integers go into any checkpoint"
    second = make(prepared.train, batch_size, sequence_length, shuffle=shuffle)
    second.load_state_dict(state)
    assert second.epoch == epoch
    assert_same(take(second, after), whole[before:])


def test_going_back_and_closing_lose_nothing(prepared: PreparedData) -> None:
    with make(prepared.train) as loader:
        state = loader.state_dict()
        first = [loader.next_batch() for _ in range(3)]
        loader.load_state_dict(state)
        again = [loader.next_batch() for _ in range(2)]
        loader.close()
        again.append(loader.next_batch())
        assert_same(again, first)
        assert_same(list(islice(loader, 2)), take(make(prepared.train), 5)[3:])


def test_batch_size_may_change_on_resume(prepared: PreparedData) -> None:
    rows = take(make(prepared.train, batch_size=1), 10)
    with make(prepared.train, batch_size=4) as loader:
        loader.next_batch()
        state = loader.state_dict()
    other = make(prepared.train, batch_size=3)
    other.load_state_dict(state)
    (batch,) = take(other, 1)
    np.testing.assert_array_equal(batch.tokens_BT, np.concatenate([row.tokens_BT for row in rows[4:7]]))


def test_seeds_give_other_orders(prepared: PreparedData) -> None:
    first, second = (take(make(prepared.train, seed=seed), 1)[0] for seed in (1, 2))
    assert not np.array_equal(first.tokens_BT, second.tokens_BT)


def test_rows_of_one_batch_come_from_all_over(prepared: PreparedData) -> None:
    """A document fills many rows here; without the shuffle of rows, a batch would be one document."""
    (batch,) = take(make(prepared.train, batch_size=8, sequence_length=64), 1)
    text = [prepared.tokenizer.decode(row.tolist()) for row in batch.tokens_BT]
    joined = "".join(
        prepared.tokenizer.decode(prepared.train.document(n)[:].tolist()) for n in range(prepared.train.num_documents)
    )
    places = sorted(joined.find(piece[len(piece) // 2 :][:40]) for piece in text)
    assert np.diff(places).max() > len(joined) / 20


def test_order_is_fixed_for_all_time() -> None:
    """Golden: a change here would break resuming of every run in progress."""
    assert shuffled(10, seed=0, epoch=0, purpose=0).tolist() == [0, 1, 9, 4, 2, 3, 6, 8, 7, 5]
    assert sorted(shuffled(1000, seed=3, epoch=1, purpose=1).tolist()) == list(range(1000))
    distinct = {tuple(shuffled(50, seed=s, epoch=e, purpose=p)) for s in (0, 1, -1) for e in (0, 1) for p in (0, 1)}
    assert len(distinct) == 12


def test_a_state_of_other_data_or_order_is_refused(prepared: PreparedData) -> None:
    state = make(prepared.train).state_dict()
    with pytest.raises(CheckpointError, match=r"the corpus, its vocabulary or its split has changed"):
        make(prepared.heldout).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"sequence_length is 32, but this training began with 64; set it back"):
        make(prepared.train, sequence_length=32).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"seed is 8, but this training began with 7"):
        make(prepared.train, seed=8).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"has entries \['next_row'\]; expected"):
        make(prepared.train).load_state_dict({"next_row": 3})


@pytest.mark.parametrize("name", ["batch_size", "sequence_length"])
def test_sizes_below_one_are_refused(prepared: PreparedData, name: str) -> None:
    sizes = {"batch_size": 1, "sequence_length": 1} | {name: 0}
    with pytest.raises(ConfigError, match=f"{name} is 0; expected at least 1"):
        make(prepared.train, sizes["batch_size"], sizes["sequence_length"])
    with pytest.raises(ConfigError, match=f"{name} is 0; expected at least 1"):
        next(heldout_batches(prepared.train, **sizes))


class FailingShards(ShardSet):
    """Whose third document cannot be read."""

    def document(self, number: int):
        if number == 2:
            raise OSError("the disk has failed")
        return super().document(number)


def test_an_error_in_the_thread_reaches_the_caller(prepared: PreparedData) -> None:
    paths = [prepared.folder / name for name in prepared.manifest.train_shards]
    with make(FailingShards.open(paths), sequence_length=40_000) as loader:
        for _ in range(2):  # asking again must fail again, not wait for ever
            with pytest.raises(OSError, match="the disk has failed"):
                loader.next_batch()


def test_a_dropped_loader_ends_its_thread(prepared: PreparedData) -> None:
    before = threading.active_count()
    loader = make(prepared.train)
    loader.next_batch()
    assert threading.active_count() == before + 1
    del loader
    end = time.monotonic() + 30
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_waiting_is_counted(prepared: PreparedData) -> None:
    with make(prepared.train) as loader:
        assert loader.wait_s == 0
        loader.next_batch()
        assert loader.wait_s > 0


@given(batch_size=st.integers(1, 7), sequence_length=st.sampled_from([1, 30, 512, 100_000]))
@settings(max_examples=10)
def test_heldout_text_is_predicted_once_to_the_byte(
    prepared: PreparedData, batch_size: int, sequence_length: int
) -> None:
    batches = list(heldout_batches(prepared.heldout, batch_size=batch_size, sequence_length=sequence_length))
    assert {batch.tokens_BT.shape for batch in batches} == {(batch_size, sequence_length)}
    assert count_pairs(batches) == all_pairs(prepared.heldout)
    assert sum(batch.num_targets for batch in batches) == prepared.heldout.num_targets
    assert sum(batch.num_bytes for batch in batches) == prepared.heldout.num_bytes == prepared.manifest.heldout.bytes
