"""What one step of the engine computes, as rows: one for each running answer, many for each piece of a prompt."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

SPAN_TOKENS = 64
"""Keys of a decoding row are padded to a multiple of this; answers of one padded length share their products."""


@dataclass(frozen=True, kw_only=True)
class DecodeRow:
    """The newest token of an answer."""

    token: int
    position: int
    slots_S: Tensor
    """Cache rows of its tokens in order, int64; at least `position` + 1, padded with row 0 to whole spans."""
    num_in_place: int = 0
    """Of `slots_S`, how many from the first on are known to lie side by side."""


@dataclass(frozen=True, kw_only=True)
class PromptPiece:
    """Consecutive tokens of one prompt."""

    tokens: list[int]
    start: int
    """Position of the first."""
    slots_S: Tensor
    """Cache rows of its tokens in order, int64; at least `start` + len(tokens)."""
    num_in_place: int = 0
    """Of `slots_S`, how many from the first on are known to lie side by side."""
    wants_logits: bool
    """Whether this piece ends the prompt."""
    wants_every_row: bool = False
    """Whether the logits of all its rows are wanted: each tells how likely the token behind it is."""

    @property
    def num_logit_rows(self) -> int:
        """How many of its rows, the last ones, are wanted."""
        return len(self.tokens) if self.wants_every_row else int(self.wants_logits)


@dataclass(frozen=True, kw_only=True)
class DecodeGroup:
    """Rows whose keys have one padded length S."""

    rows: slice
    slots_BS: Tensor
    padding_B1S: Tensor
    """−∞ at the places behind a row's own token, in the cache's type."""
    first_slot: int | None
    """Where the keys of a group of one row begin, if they lie side by side."""


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Rows in order: decoding ones by group, then the pieces."""

    tokens_N: Tensor
    positions_N: Tensor
    slots_N: Tensor
    groups: list[DecodeGroup]
    pieces: list[tuple[slice, PromptPiece]]
    logit_rows_R: Tensor
    """Rows whose logits are wanted: those of the decoding rows as they were given, then those of the pieces."""

    @classmethod
    def of(
        cls,
        decode: list[DecodeRow],
        pieces: list[PromptPiece],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> StepBatch:
        """Lay out the rows of a step; `dtype` and `device` are the cache's."""
        spans = [-(-(row.position + 1) // SPAN_TOKENS) * SPAN_TOKENS for row in decode]
        order = sorted(range(len(decode)), key=spans.__getitem__)
        groups: list[DecodeGroup] = []
        start = 0
        while start < len(order):
            span = spans[order[start]]
            stop = start
            while stop < len(order) and spans[order[stop]] == span:
                stop += 1
            members = [decode[i] for i in order[start:stop]]
            ending = _ending(span, dtype)
            barred_BS = torch.stack([ending[span - row.position - 1 :][:span] for row in members])
            groups.append(
                DecodeGroup(
                    rows=slice(start, stop),
                    slots_BS=torch.stack([row.slots_S[:span] for row in members]).to(device),
                    padding_B1S=barred_BS.unsqueeze(1).to(device),
                    first_slot=first_slot(members[0], span) if len(members) == 1 else None,
                )
            )
            start = stop
        tokens = [decode[i].token for i in order]
        positions = [decode[i].position for i in order]
        slots = [decode[i].slots_S[decode[i].position : decode[i].position + 1] for i in order]
        logit_rows = [0] * len(decode)
        for row, i in enumerate(order):
            logit_rows[i] = row
        placed: list[tuple[slice, PromptPiece]] = []
        for piece in pieces:
            first, stop = len(tokens), len(tokens) + len(piece.tokens)
            placed.append((slice(first, stop), piece))
            tokens += piece.tokens
            positions += range(piece.start, piece.start + len(piece.tokens))
            slots.append(piece.slots_S[piece.start : piece.start + len(piece.tokens)])
            logit_rows += range(stop - piece.num_logit_rows, stop)
        return cls(
            tokens_N=torch.tensor(tokens, device=device),
            positions_N=torch.tensor(positions, device=device),
            slots_N=torch.cat(slots).to(device),
            groups=groups,
            pieces=placed,
            logit_rows_R=torch.tensor(logit_rows, dtype=torch.int64, device=device),
        )


def first_slot(work: DecodeRow | PromptPiece, num_keys: int) -> int | None:
    """Where its first keys begin, if so many of them lie side by side."""
    return int(work.slots_S[0]) if num_keys <= work.num_in_place else None


@functools.lru_cache(maxsize=64)
def _ending(span: int, dtype: torch.dtype) -> Tensor:
    """Zeros for a whole span of keys, then −∞: cut out so that it turns where an answer's own keys end."""
    return torch.cat([torch.zeros(span, dtype=dtype), torch.full((SPAN_TOKENS,), float("-inf"), dtype=dtype)])
