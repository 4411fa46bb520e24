"""A weight matrix made ready for products with few rows.

On a CPU oneDNN keeps the weight in the order its kernels read, which saves half the time of a small product, and
applies what follows the product while the result is still in registers. Its results for a row do not depend on how many
other rows there are, in bfloat16 and in float32, which PyTorch's own float32 product does not promise: this is what
makes an answer independent of the batch it was computed in (tests/engine/test_forward.py, LOG 2026-11-24).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

# Builds of PyTorch without oneDNN, such as those for some ARM processors, have no such operators.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
if HAS_ONEDNN:
    # Overloads resolved once: a call saves two microseconds of looking them up.
    _pack = torch.ops.mkldnn._reorder_linear_weight.default
    _linear = torch.ops.mkldnn._linear_pointwise.default
    _linear_and = torch.ops.mkldnn._linear_pointwise.binary


BAND = 64
"""Columns of a weight that oneDNN's kernels take at once."""
PARALLEL_NUMBERS = 32_768
"""From so many numbers on PyTorch computes elementwise functions on several threads (at::internal::GRAIN_SIZE)."""


class Projection:
    """y = x·Wᵀ for rows x [N, K] and a weight W [M, K], both of one type."""

    def __init__(self, weight_MK: Tensor) -> None:
        weight_MK = weight_MK.detach().contiguous()
        self.out_features = weight_MK.shape[0]
        self._packed = weight_MK.device.type == "cpu" and HAS_ONEDNN
        self._weight = cast(Tensor, _pack(weight_MK)) if self._packed else weight_MK.clone()

    def __call__(self, x_NK: Tensor) -> Tensor:
        if self._packed:
            return _linear(x_NK, self._weight, None, "none", [], "")
        return functional.linear(x_NK, self._weight)

    def plus(self, x_NK: Tensor, addend_NM: Tensor) -> Tensor:
        """x·Wᵀ + addend."""
        if self._packed:
            return _linear_and(x_NK, addend_NM, self._weight, None, "add")
        return functional.linear(x_NK, self._weight) + addend_NM

    def sigmoid(self, x_NK: Tensor) -> Tensor:
        """The logistic function of x·Wᵀ.

        PyTorch's own function computes the last few numbers of a tensor by other code than the rest, and a last bit may
        differ: a row's result would depend on how many rows there are.
        """
        if self._packed:
            return _linear(x_NK, self._weight, None, "sigmoid", [], "")
        return functional.linear(x_NK, self._weight).sigmoid()


class HeadProjection:
    """A product for each head, y[n, h] = x[n, h]·W[h], of rows x [N, H, K] and weights W [H, K, M].

    The weights lie in bands of `BAND` columns, so that a product reads memory in order: with few rows that takes a
    quarter less time, where a weight of 512 columns has to come from memory.
    """

    def __init__(self, weight_HKM: Tensor) -> None:
        columns = weight_HKM.shape[2]
        num_bands = columns // BAND if columns % BAND == 0 else 1
        bands_HKZC = weight_HKM.detach().unflatten(2, (num_bands, -1))
        self.weight_HZKC = bands_HKZC.transpose(1, 2).contiguous()

    def __call__(self, x_NHK: Tensor) -> Tensor:
        y_HZNC = torch.matmul(x_NHK.transpose(0, 1).unsqueeze(1), self.weight_HZKC)
        return y_HZNC.permute(2, 0, 1, 3).flatten(2)


class SwiGLU:
    """down(silu(gate(x)) · up(x)). Gate and up are one product: a call costs more than a few rows' arithmetic."""

    def __init__(self, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        self.gate_up = Projection(torch.cat([gate_FD, up_FD]))
        self.down = Projection(down_DF)

    def __call__(self, x_ND: Tensor) -> Tensor:
        return self.down(self._hidden(x_ND))

    def plus(self, x_ND: Tensor, addend_ND: Tensor) -> Tensor:
        """The result added to `addend_ND`."""
        return self.down.plus(self._hidden(x_ND), addend_ND)

    def _hidden(self, x_ND: Tensor) -> Tensor:
        return gated(self.gate_up(x_ND))


def gated(gate_up_NF: Tensor) -> Tensor:
    """silu(gate) · up of rows that hold both side by side."""
    gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
    return in_parts(functional.silu, gate_NF).mul_(up_NF)


def in_parts(function: Callable[..., Tensor], *operands_Nx: Tensor) -> Tensor:
    """An elementwise function of tensors with N rows, computed on so few rows at once that one thread does it.

    PyTorch cuts larger tensors for its threads wherever it likes, also within a row, and computes the last few numbers
    of each cut by other code, whose last bit may differ. So a row's result would depend on the number of rows.
    """
    first_Nx = operands_Nx[0]
    if first_Nx.numel() < PARALLEL_NUMBERS:
        return function(*operands_Nx)
    num_rows = max(1, (PARALLEL_NUMBERS - 1) // first_Nx[0].numel())
    return torch.cat([function(*parts) for parts in zip(*(x.split(num_rows) for x in operands_Nx), strict=True)])
