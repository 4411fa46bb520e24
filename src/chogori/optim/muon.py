"""The Muon update of many matrices at once (Kimi K2 report, §2.1; Moonlight, arXiv 2502.16982).

For each matrix W of n×m: M ← μM + G; O ← NewtonSchulz(G + μM, or M without Nesterov) · 0.2·√max(n, m);
W ← W − η(O + λW). Same-shaped matrices are copied into one stack, chunk by chunk: a chunk is small enough to stay in
the processor's cache from the momentum to the weight, which makes everything beside the matrix products nearly free,
and bounds the memory for a model of any size.

Shape letters: B matrices of n rows and m columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chogori.optim.config import NewtonSchulzConfig
from chogori.optim.layout import MatrixLayout
from chogori.optim.newton_schulz import Workspace, iterate, normalize_, working_dtype

STACK_BYTES_CPU = 8 * 2**20
"""Float32 bytes of one chunk on a CPU: its working set (the chunk, two half-size copies, Gram matrices) stays in the
last cache. Of 1 to 32 MB the fastest, by a few percent."""
STACK_BYTES_ACCELERATOR = 512 * 2**20
"""Float32 bytes of one chunk elsewhere: enough matrices to fill a large GPU."""


@dataclass(frozen=True)
class Matrices:
    """Same-shaped matrices of one parameter, as views that are updated in place."""

    weight_Bnm: Tensor
    gradient_Bnm: Tensor
    momentum_Bnm: Tensor

    def __getitem__(self, part: slice) -> Matrices:
        return Matrices(self.weight_Bnm[part], self.gradient_Bnm[part], self.momentum_Bnm[part])

    def __len__(self) -> int:
        return self.weight_Bnm.shape[0]


def matrices_of(weight: Tensor, gradient: Tensor, momentum: Tensor, layout: MatrixLayout) -> list[Matrices]:
    """The matrices of one parameter with their gradients and momenta."""
    views = (layout.matrices(tensor) for tensor in (weight, gradient, momentum))
    return [Matrices(*parts) for parts in zip(*views, strict=True)]


def learning_rate_factor(n: int, m: int) -> float:
    """0.2·√max(n, m): gives an orthogonal update the root mean square of an AdamW update (Moonlight, eq. 4)."""
    return 0.2 * math.sqrt(max(n, m))


@torch.no_grad()
def muon_update(
    matrices: Iterable[Matrices],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    newton_schulz: NewtonSchulzConfig,
    stack_bytes: int | None = None,
    workspace: Workspace | None = None,
) -> None:
    """One step for all `matrices`, in place: momenta and weights change, gradients do not.

    Momenta are float32 and weights and gradients of any floating type. `stack_bytes` bounds the float32 bytes of one
    chunk (None: by device).
    """
    workspace = workspace or Workspace()
    groups: defaultdict[tuple[torch.Size, torch.device], list[Matrices]] = defaultdict(list)
    for entry in matrices:
        groups[entry.weight_Bnm.shape[1:], entry.weight_Bnm.device].append(entry)
    for (shape, device), entries in groups.items():
        n, m = shape
        limit = stack_bytes or (STACK_BYTES_CPU if device.type == "cpu" else STACK_BYTES_ACCELERATOR)
        dtype = working_dtype(newton_schulz, device)
        for chunk in _chunks(entries, max(1, limit // (4 * n * m))):
            update_Bnm = workspace.take("update", (sum(map(len, chunk)), n, m), torch.float32, device)
            _advance_momenta(chunk, update_Bnm, momentum=momentum, nesterov=nesterov)
            normalize_(update_Bnm, newton_schulz.eps)
            if dtype is torch.float32:
                x_Bnm = update_Bnm
            else:
                x_Bnm = workspace.take("narrow", update_Bnm.shape, dtype, device).copy_(update_Bnm)
            x_Bnm = iterate(x_Bnm, newton_schulz, workspace)
            if x_Bnm.dtype is not torch.float32:
                x_Bnm = update_Bnm.copy_(x_Bnm)
            # Not as the scale of the last product: torch 2.13's bfloat16 baddbmm takes alpha = 0 for 1 on a CPU.
            x_Bnm.mul_(-lr * learning_rate_factor(n, m))
            start = 0
            for entry in chunk:
                part_Bnm = x_Bnm[start : start + len(entry)]
                # One rounding: W ← (1 − ηλ)·W + part.
                torch.add(part_Bnm, entry.weight_Bnm, alpha=1 - lr * weight_decay, out=entry.weight_Bnm)
                start += len(entry)


def _chunks(entries: Sequence[Matrices], capacity: int) -> Iterable[list[Matrices]]:
    """Regroup entries so that each list holds at most `capacity` matrices, of nearly equal number."""
    total = sum(map(len, entries))
    size = math.ceil(total / math.ceil(total / capacity))
    chunk: list[Matrices] = []
    room = size
    for entry in entries:
        start = 0
        while start < len(entry):
            part = entry if start == 0 and len(entry) <= room else entry[start : start + room]
            chunk.append(part)
            start += len(part)
            room -= len(part)
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def _advance_momenta(chunk: Sequence[Matrices], update_Bnm: Tensor, *, momentum: float, nesterov: bool) -> None:
    """M ← μM + G for each entry; `update_Bnm` receives G + μM (Nesterov) or M."""
    start = 0
    for entry in chunk:
        part_Bnm = update_Bnm[start : start + len(entry)]
        torch.add(entry.gradient_Bnm, entry.momentum_Bnm, alpha=momentum, out=entry.momentum_Bnm)
        if nesterov:
            torch.add(entry.gradient_Bnm, entry.momentum_Bnm, alpha=momentum, out=part_Bnm)
        else:
            part_Bnm.copy_(entry.momentum_Bnm)
        start += len(entry)
