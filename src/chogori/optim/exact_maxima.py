"""The largest attention logit of chosen heads, recomputed from queries and keys.

A row's largest logit is at most its log-sum-exp. So the row of largest log-sum-exp is computed first, and then only
rows whose log-sum-exp reaches what was found. Where logits are large enough to need clipping the softmax is sharp and
these rows are few; where logits are flat, all rows are computed, block by block.

Shape letters: B sequences, H query heads, G key heads (G divides H), h chosen heads, T query positions, S key
positions, R chosen rows, d head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_BYTES = 32 * 2**20
"""Float32 bytes of queries, of keys, or of logits held at once; one head and one row always fit."""
BLOCK_ROWS = 128
"""Rows computed together when all are: with a causal mask a block needs no keys after its last row."""
FEW = 4
"""Rows are picked out when at most one in this many can hold the maximum; else all are computed in order."""


@torch.no_grad()
def exact_maxima(
    q_BHTd: Tensor,
    k_BGSd: Tensor,
    scale: float,
    heads: Tensor,
    *,
    lse_BHT: Tensor | None = None,
    documents_BT: Tensor | None = None,
    mask_BHTS: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """The largest visible q·k·scale of each of `heads` over all rows, in float32 (float64 for such inputs).

    With `lse_BHT` only rows that can hold the maximum are computed. `documents_BT` numbers the documents of packed
    rows, `mask_BHTS` is boolean (True: visible) and broadcast over B and H. −inf for a head that sees no key at all.
    """
    heads = heads.to(q_BHTd.device)
    group = q_BHTd.shape[1] // k_BGSd.shape[1]
    dtype = torch.float64 if q_BHTd.dtype is torch.float64 else torch.float32
    longest = max(q_BHTd.shape[2], k_BGSd.shape[2])
    heads_at_once = max(1, CHUNK_BYTES // (4 * q_BHTd.shape[0] * longest * q_BHTd.shape[-1]))
    maxima: list[Tensor] = []
    for part in heads.split(heads_at_once):
        logits = _Logits(
            (q_BHTd[:, part] * scale if dtype is q_BHTd.dtype else q_BHTd[:, part].to(dtype).mul_(scale)),
            k_BGSd[:, part // group].to(dtype),
            documents_BT,
            mask_BHTS if mask_BHTS is None or mask_BHTS.shape[1] == 1 else mask_BHTS[:, part],
            causal,
        )
        maxima.append(logits.maxima(None if lse_BHT is None else lse_BHT[:, part]))
    return torch.cat(maxima)


@dataclass(frozen=True, eq=False)
class _Logits:
    """The logits of some heads, computed row by row as asked."""

    q_BhTd: Tensor
    k_BhSd: Tensor
    documents_BT: Tensor | None
    mask_BhTS: Tensor | None
    causal: bool

    def maxima(self, lse_BhT: Tensor | None) -> Tensor:
        """The largest logit of each head."""
        if lse_BhT is None:
            return self._of_all_rows()
        found_h = self._of_rows(lse_BhT.argmax(dim=-1, keepdim=True))
        # Rounding of the log-sum-exp must not exclude the row that holds the maximum.
        least_h = found_h - 1e-4 * found_h.abs() - 1e-4
        num_rows = int((lse_BhT >= least_h[None, :, None]).sum(dim=-1).max())
        if num_rows * FEW > lse_BhT.shape[-1]:
            return self._of_all_rows()
        if num_rows > 1:
            found_h = torch.maximum(found_h, self._of_rows(lse_BhT.topk(num_rows, dim=-1, sorted=False).indices))
        return found_h

    def _of_rows(self, rows_BhR: Tensor) -> Tensor:
        """Over one selection of rows for each sequence and head."""
        batch, heads = rows_BhR.shape[:2]
        num_keys = self.k_BhSd.shape[2]
        result_h = torch.full((heads,), -math.inf, dtype=self.q_BhTd.dtype, device=self.q_BhTd.device)
        for part_BhR in rows_BhR.split(max(1, CHUNK_BYTES // (4 * batch * heads * num_keys)), dim=-1):
            index = part_BhR.unsqueeze(-1)
            logits_BhRS = self.q_BhTd.take_along_dim(index, dim=2) @ self.k_BhSd.mT
            hidden = torch.zeros((), dtype=torch.bool, device=index.device)
            if self.causal:
                hidden = torch.arange(num_keys, device=index.device) > index
            if self.documents_BT is not None:
                documents_BhR1 = self.documents_BT.unsqueeze(1).take_along_dim(part_BhR, dim=2).unsqueeze(-1)
                hidden = hidden | (documents_BhR1 != self.documents_BT[:, None, None, :])
            if self.mask_BhTS is not None:
                hidden = hidden | ~self.mask_BhTS.expand(batch, heads, -1, -1).take_along_dim(index, dim=2)
            logits_BhRS.masked_fill_(hidden, -math.inf)
            result_h = torch.maximum(result_h, logits_BhRS.amax(dim=(0, 2, 3)))
        return result_h

    def _of_all_rows(self) -> Tensor:
        batch, heads, num_rows, _ = self.q_BhTd.shape
        num_keys = self.k_BhSd.shape[2]
        device = self.q_BhTd.device
        result_h = torch.full((heads,), -math.inf, dtype=self.q_BhTd.dtype, device=device)
        block = max(1, min(BLOCK_ROWS, CHUNK_BYTES // (4 * batch * heads * num_keys)))
        for start in range(0, num_rows, block):
            stop = min(start + block, num_rows)
            seen = min(stop, num_keys) if self.causal else num_keys
            logits_BhRS = self.q_BhTd[:, :, start:stop] @ self.k_BhSd[:, :, :seen].mT
            if self.causal and seen > start:
                # Only the last square of a block holds keys after a row. Added: filling by a mask is far slower.
                future_RS = torch.full((stop - start, seen - start), -math.inf, dtype=logits_BhRS.dtype, device=device)
                logits_BhRS[..., start:] += future_RS.triu_(1)
            if self.documents_BT is not None:
                documents_BRS = self.documents_BT[:, start:stop, None] != self.documents_BT[:, None, :seen]
                logits_BhRS.masked_fill_(documents_BRS.unsqueeze(1), -math.inf)
            if self.mask_BhTS is not None:
                logits_BhRS.masked_fill_(~self.mask_BhTS[:, :, start:stop, :seen], -math.inf)
            result_h = torch.maximum(result_h, logits_BhRS.amax(dim=(0, 2, 3)))
        return result_h
