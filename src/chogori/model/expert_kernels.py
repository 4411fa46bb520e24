"""The routed experts' arithmetic: tokens sorted by expert, one matrix product per expert and projection.

On a CPU each expert's slice of the sorted tokens is one product written in place, without padding to the busiest
expert; elsewhere PyTorch's grouped products do the same in one launch.

Shapes: T tokens, K experts per token, P = T·K (token, expert) pairs sorted by expert, E experts, D width, F inner
width, X = 2F (gate above up).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def routed_experts(
    x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Σ_k weight_k · expert_k(x) for every token, [T, D] in x's type.

    Weights are float32 [T, K]; experts int64 [T, K]; an expert is down(silu(gate x) · up x).
    """
    if x_TD.device.type == "cpu":
        return cast(Tensor, _LoopedExperts.apply(x_TD, experts_TK, weights_TK, gate_up_EXD, down_EDF))
    return grouped_experts(x_TD, experts_TK, weights_TK, gate_up_EXD, down_EDF)


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
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        num_tokens, top_k = experts_TK.shape
        order_P, counts_E = _sort_pairs(experts_TK, gate_up_EXD.shape[0])
        slices = _slices(counts_E)
        position_P = torch.empty_like(order_P)
        position_P[order_P] = torch.arange(order_P.numel())
        x_PD = x_TD.index_select(0, order_P // top_k)
        gate_up_PX = x_PD.new_empty(x_PD.shape[0], gate_up_EXD.shape[1])
        for expert, rows in slices:
            torch.mm(x_PD[rows], gate_up_EXD[expert].T, out=gate_up_PX[rows])
        hidden_PF = _swiglu(gate_up_PX)
        y_PD = torch.empty_like(x_PD)
        for expert, rows in slices:
            torch.mm(hidden_PF[rows], down_EDF[expert].T, out=y_PD[rows])
        y_TKD = y_PD.index_select(0, position_P).view(num_tokens, top_k, -1)
        out_TD = (y_TKD * weights_TK.unsqueeze(-1).to(y_TKD.dtype)).sum(1)
        ctx.save_for_backward(x_PD, gate_up_PX, y_TKD, weights_TK, order_P, position_P, gate_up_EXD, down_EDF)
        ctx.slices = slices
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dout_TD,) = grads
        x_PD, gate_up_PX, y_TKD, weights_TK, order_P, position_P, gate_up_EXD, down_EDF = ctx.saved_tensors
        num_tokens, top_k = weights_TK.shape
        dweights_TK = torch.bmm(y_TKD, dout_TD.unsqueeze(-1)).squeeze(-1).to(weights_TK.dtype)
        token_P = order_P // top_k
        dy_PD = dout_TD.index_select(0, token_P).mul_(
            weights_TK.flatten().index_select(0, order_P).unsqueeze(-1).to(dout_TD.dtype)
        )
        dhidden_PF = gate_up_PX.new_empty(gate_up_PX.shape[0], down_EDF.shape[2])
        ddown_EDF = torch.zeros_like(down_EDF)
        hidden_PF = _swiglu(gate_up_PX)
        for expert, rows in ctx.slices:
            torch.mm(dy_PD[rows], down_EDF[expert], out=dhidden_PF[rows])
            torch.mm(dy_PD[rows].T, hidden_PF[rows], out=ddown_EDF[expert])
        dgate_up_PX = _swiglu_backward(gate_up_PX, dhidden_PF)
        dx_PD = dy_PD  # its values are no longer needed
        dgate_up_EXD = torch.zeros_like(gate_up_EXD)
        for expert, rows in ctx.slices:
            torch.mm(dgate_up_PX[rows], gate_up_EXD[expert], out=dx_PD[rows])
            torch.mm(dgate_up_PX[rows].T, x_PD[rows], out=dgate_up_EXD[expert])
        dx_TD = dx_PD.index_select(0, position_P).view(num_tokens, top_k, -1).sum(1)
        return dx_TD, None, dweights_TK, dgate_up_EXD, ddown_EDF


def _slices(counts_E: Tensor) -> list[tuple[int, slice]]:
    """The rows of each expert that has any."""
    slices: list[tuple[int, slice]] = []
    start = 0
    for expert, count in enumerate(counts_E.tolist()):
        if count:
            slices.append((expert, slice(start, start + count)))
        start += count
    return slices


def _swiglu(gate_up_PX: Tensor) -> Tensor:
    gate_PF, up_PF = gate_up_PX.chunk(2, dim=-1)
    return functional.silu(gate_PF).mul_(up_PF)


def _swiglu_backward(gate_up_PX: Tensor, dhidden_PF: Tensor) -> Tensor:
    """Gradients of gate and up, side by side. d silu(g) = σ(g)(1 + g(1 − σ(g)))."""
    gate_PF, up_PF = gate_up_PX.chunk(2, dim=-1)
    dgate_up_PX = torch.empty_like(gate_up_PX)
    dgate_PF, dup_PF = dgate_up_PX.chunk(2, dim=-1)
    torch.mul(dhidden_PF, functional.silu(gate_PF), out=dup_PF)
    dsilu_PF = dhidden_PF.mul_(up_PF)  # the caller has no further use for it
    dgate_PF.copy_(torch.ops.aten.silu_backward(dsilu_PF, gate_PF))
    return dgate_up_PX
