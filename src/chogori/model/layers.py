"""The two small layers every block is made of. Weights stay in their own type; arithmetic is in the input's type."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function


class Linear(nn.Linear):
    """A projection without bias whose weight is cast to the input's type, so that float32 masters train in bfloat16."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: `K2Model.initialize` fills all weights at once."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype))


class Embedding(nn.Embedding):
    """Token embeddings, left empty for `K2Model.initialize` like `Linear`."""

    def reset_parameters(self) -> None:
        """Nothing, as in `Linear`."""


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last dimension, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return cast(Tensor, _CpuRMSNorm.apply(x, self.weight, self.eps))
        return nn.functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class _CpuRMSNorm(Function):
    """The norm and its gradient in the fewest passes; PyTorch's own takes four times as long (LOG 2026-11-23)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x.float() * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = cast(tuple[Tensor, Tensor, Tensor], ctx.saved_tensors)
        dout, normed = grads[0].float(), x.float() * scale
        product = dout * normed
        dweight = product.flatten(0, -2).sum(0)
        # With n = x·s: dx = s (dn − n · mean(dn · n)), dn = dout · weight.
        mean = product.mul_(weight).mean(-1, keepdim=True)
        dx = (dout * weight).addcmul_(normed, mean, value=-1.0).mul_(scale)
        return dx.to(x.dtype), dweight.to(weight.dtype), None
