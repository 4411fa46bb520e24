"""Packing: documents of any length into rows of one length, every token predicted once a pass.

A document [BOS] t1 … tn [EOS] is n + 1 pairs of an input and its target: ([BOS], t1), (t1, t2) … (tn, [EOS]). Pairs of
all documents, in the order of the plan, are laid end to end and cut into rows; what does not fit into a row continues
in the next. So no target lies in another document, only the last row is padded, and [EOS] is predicted but never read.
(K2's report does not say how its documents were packed; [BOS] and [EOS] are its tokens for a document's two ends.)

Shape suffixes: B rows in a batch, T tokens in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chogori.data.shards import ShardSet

IGNORE_INDEX = -100
"""Target of a position that predicts nothing (the value torch's cross-entropy ignores)."""

_PADDING_TOKEN = 0  # any id of the vocabulary: a padded position predicts nothing and is a document of its own


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows to train or evaluate on."""

    tokens_BT: npt.NDArray[np.int64]
    """Input ids."""
    targets_BT: npt.NDArray[np.int64]
    """The token after each input, or IGNORE_INDEX where none is to be predicted."""
    documents_BT: npt.NDArray[np.int32]
    """Number of the document within its row, from 0; a token attends within its document only."""
    num_targets: int
    """Targets that are not IGNORE_INDEX."""
    num_bytes: int
    """UTF-8 bytes these targets stand for ([EOS] for none)."""


class PackingPlan:
    """One pass over some documents in some order, as rows that can be made in any order."""

    def __init__(self, shards: ShardSet, order: npt.NDArray[np.int64], sequence_length: int) -> None:
        """`order`: document numbers as they follow each other; `sequence_length`: T."""
        self._shards = shards
        self._order = order
        self._sequence_length = sequence_length
        self._ends = np.cumsum(shards.document_lengths[order] - 1)
        self.num_pairs = int(self._ends[-1])
        self.num_rows = -(-self.num_pairs // sequence_length)

    def batch(self, rows: list[int]) -> Batch:
        """The given rows; a row number at or past `num_rows` is padding throughout."""
        shape_BT = (len(rows), self._sequence_length)
        tokens_BT = np.full(shape_BT, _PADDING_TOKEN, dtype=np.int64)
        targets_BT = np.full(shape_BT, IGNORE_INDEX, dtype=np.int64)
        documents_BT = np.zeros(shape_BT, dtype=np.int32)
        for place, row in enumerate(rows):
            if row < self.num_rows:
                self._fill(row, tokens_BT[place], targets_BT[place], documents_BT[place])
        return finish_batch(self._shards, tokens_BT, targets_BT, documents_BT)

    def _fill(
        self,
        row: int,
        tokens_T: npt.NDArray[np.int64],
        targets_T: npt.NDArray[np.int64],
        documents_T: npt.NDArray[np.int32],
    ) -> None:
        position = row * self._sequence_length
        index = int(np.searchsorted(self._ends, position, side="right"))
        filled, number = 0, 0
        while filled < self._sequence_length and index < len(self._order):
            document = self._shards.document(int(self._order[index]))
            start = position + filled - (int(self._ends[index]) - (len(document) - 1))
            stop = min(start + self._sequence_length - filled, len(document) - 1)
            end = filled + stop - start
            tokens_T[filled:end] = document[start:stop]
            targets_T[filled:end] = document[start + 1 : stop + 1]
            documents_T[filled:end] = number
            filled, number, index = end, number + 1, index + 1
        documents_T[filled:] = number


def finish_batch(
    shards: ShardSet,
    tokens_BT: npt.NDArray[np.int64],
    targets_BT: npt.NDArray[np.int64],
    documents_BT: npt.NDArray[np.int32],
) -> Batch:
    """Count the targets and the bytes they stand for."""
    targets = targets_BT[targets_BT != IGNORE_INDEX]
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=targets_BT,
        documents_BT=documents_BT,
        num_targets=len(targets),
        num_bytes=int(shards.token_bytes[targets].sum(dtype=np.int64)),
    )
