"""Batches for training, endless and resumable to the exact row, and one pass over held-out text.

An epoch is: documents shuffled, packed into rows, rows shuffled. The second shuffle keeps the rows of a long document
from filling one batch. Both orders follow from (seed, epoch) alone, so row number n of all time is a pure function of
n: resuming is starting to count elsewhere, and the thread that prepares batches ahead cannot change what they are.

Shape suffixes: B rows in a batch, T tokens in a row.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from chogori.data.packing import Batch, PackingPlan, finish_batch
from chogori.data.shards import ShardSet
from chogori.errors import CheckpointError, ConfigError

_NUM_AHEAD = 4  # batches prepared ahead of the model
_POLL_S = 0.1  # how soon the thread notices that nobody wants more

_Order = npt.NDArray[np.int64]


def shuffled(count: int, *, seed: int, epoch: int, purpose: int) -> _Order:
    """The numbers below `count` in an order that depends on the arguments only, not on NumPy's version.

    Each number is sorted by a 64-bit hash of itself and the arguments (SplitMix64's finaliser, Steele et al. 2014);
    a tie, of chance count²/2⁶⁵, keeps the smaller number first.
    """
    key = np.uint64(0)
    with np.errstate(over="ignore"):
        for part in (seed, epoch, purpose):
            key = _mix(np.asarray([key ^ np.uint64(part % 2**64)], dtype=np.uint64))[0]
    hashes = _mix(np.arange(count, dtype=np.uint64) ^ key)
    return np.argsort(hashes, kind="stable")


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class PackedLoader:
    """Endless batches for training, prepared ahead by a thread.

    Every target of the corpus comes exactly once an epoch; the last row of an epoch is padded. Use it as a context
    manager, or `close` it, to end its thread early; it ends by itself when the loader is dropped.
    """

    def __init__(
        self, shards: ShardSet, *, batch_size: int, sequence_length: int, seed: int, shuffle: bool = True
    ) -> None:
        """`batch_size` rows of `sequence_length` tokens. Without `shuffle`, rows come in the order of the shards.

        Raises ConfigError when a size is below 1.
        """
        for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        self._rows = _RowSource(shards, sequence_length, seed, shuffle)
        self._batch_size = batch_size
        self._sequence_length = sequence_length
        self._seed = seed
        self._shuffle = shuffle
        self._fingerprint = int(shards.fingerprint[:15], 16)
        self._next_row = 0
        self._prefetch: _Prefetch | None = None
        self.wait_s = 0.0
        """Seconds that `next_batch` has waited for data so far."""

    @property
    def rows_per_epoch(self) -> int:
        """Rows after which every target has come once."""
        return self._rows.per_epoch

    @property
    def epoch(self) -> int:
        """Epoch that the next row belongs to, from 0."""
        return self._next_row // self.rows_per_epoch

    def next_batch(self) -> Batch:
        """The next `batch_size` rows. Raises what went wrong in the thread, such as a failing disk."""
        start = time.perf_counter()
        if self._prefetch is None:
            self._prefetch = _Prefetch(self._rows, self._next_row, self._batch_size)
        batch = self._prefetch.get()
        self.wait_s += time.perf_counter() - start
        self._next_row += self._batch_size
        return batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next_batch()

    def state_dict(self) -> dict[str, int]:
        """Where the next batch begins, and what that depends on; plain integers."""
        return {
            "next_row": self._next_row,
            "sequence_length": self._sequence_length,
            "seed": self._seed,
            "shuffle": int(self._shuffle),
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken; the batch size may differ.

        Raises CheckpointError when the state is of other shards or another order, so that no token would come twice.
        """
        expected = self.state_dict()
        if set(state) != set(expected):
            raise CheckpointError(
                f"the loader's state has entries {sorted(state)}; expected {sorted(expected)}, of this version."
            )
        if state["fingerprint"] != expected["fingerprint"]:
            raise CheckpointError(
                "the tokens are not those this training began with: the corpus, its vocabulary or its split has "
                "changed. Restore the data folder of the run, or begin a new run."
            )
        for name in ("sequence_length", "seed", "shuffle"):
            if state[name] != expected[name]:
                raise CheckpointError(
                    f"{name} is {expected[name]}, but this training began with {state[name]}; set it back, or begin a "
                    "new run."
                )
        self.close()
        self._next_row = state["next_row"]

    def close(self) -> None:
        """End the thread. A later `next_batch` starts another and nothing is lost."""
        if self._prefetch is not None:
            self._prefetch.stop()
            self._prefetch = None

    def __enter__(self) -> PackedLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        prefetch: _Prefetch | None = getattr(self, "_prefetch", None)
        if prefetch is not None:
            prefetch.abandon()


class _RowSource:
    """Row n of all time, from the plan of its epoch; keeps the newest two plans."""

    def __init__(self, shards: ShardSet, sequence_length: int, seed: int, shuffle: bool) -> None:
        self._shards = shards
        self._sequence_length = sequence_length
        self._seed = seed
        self._shuffle = shuffle
        self._plans: dict[int, tuple[PackingPlan, _Order]] = {}
        self.per_epoch = -(-shards.num_targets // sequence_length)

    def batch(self, first_row: int, count: int) -> Batch:
        parts: list[Batch] = []
        while count:
            epoch, begin = divmod(first_row, self.per_epoch)
            taken = min(count, self.per_epoch - begin)
            plan, row_order = self._plan(epoch)
            parts.append(plan.batch(row_order[begin : begin + taken].tolist()))
            first_row, count = first_row + taken, count - taken
        if len(parts) == 1:
            return parts[0]
        return finish_batch(
            self._shards,
            np.concatenate([part.tokens_BT for part in parts]),
            np.concatenate([part.targets_BT for part in parts]),
            np.concatenate([part.documents_BT for part in parts]),
        )

    def _plan(self, epoch: int) -> tuple[PackingPlan, _Order]:
        if epoch not in self._plans:
            while len(self._plans) > 1:
                del self._plans[next(iter(self._plans))]
            num_documents = self._shards.num_documents
            if self._shuffle:
                order = shuffled(num_documents, seed=self._seed, epoch=epoch, purpose=0)
                row_order = shuffled(self.per_epoch, seed=self._seed, epoch=epoch, purpose=1)
            else:
                order, row_order = np.arange(num_documents), np.arange(self.per_epoch)
            self._plans[epoch] = (PackingPlan(self._shards, order, self._sequence_length), row_order)
        return self._plans[epoch]


class _Prefetch:
    """A thread that makes batches ahead. It holds no reference to the loader, so a dropped loader ends it."""

    def __init__(self, rows: _RowSource, first_row: int, batch_size: int) -> None:
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(_NUM_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=_produce,
            args=(rows, first_row, batch_size, self._queue, self._stopped),
            name="chogori-loader",
            daemon=True,
        )
        self._thread.start()

    def get(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # the thread has ended: every later call must fail too, not wait
            raise item
        return item

    def stop(self) -> None:
        self.abandon()
        self._thread.join()

    def abandon(self) -> None:
        self._stopped.set()


def _produce(
    rows: _RowSource,
    next_row: int,
    batch_size: int,
    out: queue.Queue[Batch | BaseException],
    stopped: threading.Event,
) -> None:
    while not stopped.is_set():
        try:
            item: Batch | BaseException = rows.batch(next_row, batch_size)
        except BaseException as error:  # handed to the thread that asks for the batch
            item = error
        while not stopped.is_set():
            try:
                out.put(item, timeout=_POLL_S)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return
        next_row += batch_size


def heldout_batches(shards: ShardSet, *, batch_size: int, sequence_length: int) -> Iterator[Batch]:
    """One pass in the order of the shards: every token of every document but its [BOS] is a target exactly once.

    A document longer than a row continues in the next without the context before. The last batch is padded to
    `batch_size` rows. `num_bytes` over all batches is `shards.num_bytes`, so that bits per byte is exact.
    """
    for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    plan = PackingPlan(shards, np.arange(shards.num_documents), sequence_length)
    for first in range(0, plan.num_rows, batch_size):
        yield plan.batch(list(range(first, first + batch_size)))
