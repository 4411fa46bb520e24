"""The routed experts' arithmetic: tokens sorted by expert, one matrix product per expert and projection.

On a CPU each expert's rows are one product written in place, without padding all experts to the busiest one;
elsewhere PyTorch's grouped products do the same in one launch.

Shapes: T tokens, K experts per token, P slots for (token, expert) pairs sorted by expert, E experts, D width, F inner
width, X = 2F (gate above up).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

ROW_MULTIPLE = 64
"""Rows per expert are rounded up to this: oneDNN compiles a kernel for every new shape, half a millisecond each, and
tokens per expert change in every step (measured, LOG 2026-11-23)."""


def routed_experts(
    x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Σ_k weight_k · expert_k(x) for every token, [T, D] in x's type, differentiable.

    Weights are float32 [T, K]; experts int64 [T, K]; an expert is down(silu(gate x) · up x).
    """
    if x_TD.device.type == "cpu":
        return cast(Tensor, _LoopedExperts.apply(x_TD, experts_TK, weights_TK, gate_up_EXD, down_EDF))
    return grouped_experts(x_TD, experts_TK, weights_TK, gate_up_EXD, down_EDF)


@torch.no_grad()
def visited_experts(
    x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """The same for a few tokens without gradients: only the weights of the experts they visit are read."""
    out_TD = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    for expert in experts_TK.unique().tolist():
        token_X, place_X = (experts_TK == expert).nonzero(as_tuple=True)
        x_XD = x_TD[token_X]
        hidden_XF = functional.silu(functional.linear(x_XD, gate_EFD[expert].to(x_TD.dtype)))
        hidden_XF = hidden_XF * functional.linear(x_XD, up_EFD[expert].to(x_TD.dtype))
        y_XD = functional.linear(hidden_XF, down_EDF[expert].to(x_TD.dtype))
        out_TD.index_add_(0, token_X, y_XD.float() * weights_TK[token_X, place_X, None])
    return out_TD.to(x_TD.dtype)


def grouped_experts(
    x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor
) -> Tensor:
    """The same by grouped matrix products, which GPUs run in one launch and autograd differentiates."""
    order_P, counts_E = _sort_pairs(experts_TK, gate_up_EXD.shape[0])
    top_k = experts_TK.shape[1]
    ends_E = counts_E.cumsum(0).to(torch.int32)
    x_PD = x_TD[order_P // top_k]
    gate_PF, up_PF = functional.grouped_mm(x_PD, gate_up_EXD.mT, offs=ends_E).chunk(2, dim=-1)
    y_PD = functional.grouped_mm(functional.silu(gate_PF) * up_PF, down_EDF.mT, offs=ends_E)
    y_TKD = y_PD[order_P.argsort()].unflatten(0, (-1, top_k))
    return (y_TKD * weights_TK.unsqueeze(-1).to(y_TKD.dtype)).sum(1)


def _sort_pairs(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The order that sorts (token, expert) pairs by expert, and how many pairs each expert has."""
    flat_P = experts_TK.flatten()
    return flat_P.argsort(stable=True), torch.bincount(flat_P, minlength=num_experts)


class _LoopedExperts(Function):
    """One product per expert over its rows. The routing weight multiplies the hidden layer, its narrowest place."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        slots = _Slots(experts_TK, gate_up_EXD.shape[0])
        weight_P1 = slots.spread(weights_TK).to(x_TD.dtype)
        x_PD = x_TD.index_select(0, slots.token_P)
        gate_up_PX = x_PD.new_empty(x_PD.shape[0], gate_up_EXD.shape[1])
        for expert, rows in slots.rows:
            torch.mm(x_PD[rows], gate_up_EXD[expert].T, out=gate_up_PX[rows])
        gate_PF, up_PF = gate_up_PX.chunk(2, dim=-1)
        hidden_PF = functional.silu(gate_PF).mul_(up_PF).mul_(weight_P1)
        y_PD = torch.empty_like(x_PD)
        for expert, rows in slots.rows:
            torch.mm(hidden_PF[rows], down_EDF[expert].T, out=y_PD[rows])
        ctx.save_for_backward(x_PD, gate_up_PX, weight_P1, gate_up_EXD, down_EDF)
        ctx.slots = slots
        return slots.gather_sum(y_PD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_PD, gate_up_PX, weight_P1, gate_up_EXD, down_EDF = cast(tuple[Tensor, ...], ctx.saved_tensors)
        slots = cast(_Slots, ctx.slots)
        dy_PD = grads[0].index_select(0, slots.token_P)
        gate_PF, up_PF = gate_up_PX.chunk(2, dim=-1)
        silu_PF = functional.silu(gate_PF)
        hidden_PF = silu_PF * up_PF
        dhidden_PF = torch.empty_like(hidden_PF)
        for expert, rows in slots.rows:
            torch.mm(dy_PD[rows], down_EDF[expert], out=dhidden_PF[rows])
        dweights_TK = (hidden_PF * dhidden_PF).sum(-1, dtype=torch.float32)[slots.slot_TK]
        # Padding has weight 0, so it adds nothing to any gradient below.
        hidden_PF *= weight_P1
        dhidden_PF *= weight_P1
        dgate_up_PX = torch.empty_like(gate_up_PX)
        dgate_PF, dup_PF = dgate_up_PX.chunk(2, dim=-1)
        torch.mul(dhidden_PF, silu_PF, out=dup_PF)
        dgate_PF.copy_(torch.ops.aten.silu_backward(dhidden_PF.mul_(up_PF), gate_PF))
        ddown_EDF, dgate_up_EXD = torch.zeros_like(down_EDF), torch.zeros_like(gate_up_EXD)
        dx_PD = torch.empty_like(x_PD)
        for expert, rows in slots.rows:
            torch.mm(dy_PD[rows].T, hidden_PF[rows], out=ddown_EDF[expert])
            torch.mm(dgate_up_PX[rows].T, x_PD[rows], out=dgate_up_EXD[expert])
            torch.mm(dgate_up_PX[rows], gate_up_EXD[expert], out=dx_PD[rows])
        return slots.gather_sum(dx_PD), None, dweights_TK, dgate_up_EXD, ddown_EDF


class _Slots:
    """Where each (token, expert) pair stands: sorted by expert, each expert's rows rounded up to `ROW_MULTIPLE`."""

    def __init__(self, experts_TK: Tensor, num_experts: int) -> None:
        order_X, counts_E = _sort_pairs(experts_TK, num_experts)
        padded_E = (counts_E + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
        shift_E = (padded_E - counts_E).cumsum(0) - (padded_E - counts_E)
        slot_X = torch.arange(order_X.numel()) + shift_E.repeat_interleave(counts_E)
        ends = padded_E.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        self.rows = [(e, slice(a, b)) for e, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < b]
        self.num_slots: int = ends[-1]
        self.slot_TK = torch.empty_like(order_X).index_copy_(0, order_X, slot_X).view_as(experts_TK)
        self.token_P = torch.zeros(self.num_slots, dtype=torch.int64)
        self.token_P[slot_X] = order_X // experts_TK.shape[1]

    def spread(self, weights_TK: Tensor) -> Tensor:
        """The weight of the pair in each slot, 0 in padding, [P, 1]."""
        weight_P = weights_TK.new_zeros(self.num_slots)
        weight_P[self.slot_TK.flatten()] = weights_TK.flatten()
        return weight_P.unsqueeze(-1)

    def gather_sum(self, y_PD: Tensor) -> Tensor:
        """Σ_k y[slot of (t, k)], summed in float32: an embedding bag, which does both in one pass."""
        return functional.embedding_bag(self.slot_TK, y_PD, mode="sum")
