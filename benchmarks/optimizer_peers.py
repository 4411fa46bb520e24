"""Other Muons, restated from their published algorithms with the same cost structure: what is looped, stacked, fused by
torch.compile and in which type. All scale updates by 0.2·√max(n, m), whatever their default.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor

MUON_QUINTIC = (3.4445, -4.7750, 2.0315)
DION_QUINTICS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""microsoft/dion's constants when Polar Express is switched off; its cost does not depend on them."""
LR, WEIGHT_DECAY, MOMENTUM = 2e-4, 0.1, 0.95

foreach: Any = torch  # its multi-tensor functions are not in the type stubs

# One compiled function meets as many shapes as the model has; the default of 8 makes dion stop with an error.
torch._dynamo.config.recompile_limit = 64


def orthogonalize_textbook(gradient: Tensor) -> Tensor:
    """Keller Jordan's loop, which Moonlight takes over: bfloat16, three products and two sums a step."""
    a, b, c = MUON_QUINTIC
    x = gradient.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _matrices(parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
    for parameter in parameters:
        gradient = torch.randn_like(parameter)
        yield parameter, gradient, torch.zeros_like(parameter), 0.2 * math.sqrt(max(parameter.shape[-2:]))


class KellerJordanMuon:
    """KellerJordan/Muon, single device: each parameter by itself, eager."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.entries = list(_matrices(parameters))

    @torch.no_grad()
    def step(self) -> None:
        for parameter, gradient, momentum, factor in self.entries:
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalize_textbook(gradient.lerp(momentum, MOMENTUM))
            parameter.mul_(1 - LR * WEIGHT_DECAY)
            parameter.add_(update, alpha=-LR * factor)


class MoonlightMuon:
    """MoonshotAI/Moonlight's example: each matrix by itself, Newton–Schulz compiled."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.entries = list(_matrices(matrices))
        self.orthogonalize: Callable[[Tensor], Tensor] = torch.compile(orthogonalize_textbook)

    @torch.no_grad()
    def step(self) -> None:
        for matrix, gradient, momentum, factor in self.entries:
            momentum.mul_(MOMENTUM).add_(gradient)
            update = self.orthogonalize(gradient.add(momentum, alpha=MOMENTUM))
            matrix.mul_(1 - LR * WEIGHT_DECAY)
            matrix.add_(update, alpha=-LR * factor)


def _dion_momenta(gradients: list[Tensor], momenta: list[Tensor], mu: Tensor) -> list[Tensor]:
    foreach._foreach_mul_(momenta, mu)
    foreach._foreach_add_(momenta, gradients)
    updates = foreach._foreach_mul(momenta, mu)
    foreach._foreach_add_(updates, gradients)
    return [update.to(torch.bfloat16) for update in updates]


def _dion_orthogonalize(x: Tensor) -> Tensor:
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in DION_QUINTICS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def _dion_polar_express(x: Tensor) -> Tensor:
    tall = x.shape[-2] > x.shape[-1]
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in DION_QUINTICS:  # its own coefficients differ, the cost does not
        gram = x.mT @ x if tall else x @ x.mT
        factor = b * gram + c * (gram @ gram)
        x = a * x + (x @ factor if tall else factor @ x)
    return x


def _dion_apply(weights: list[Tensor], updates: list[Tensor], lr: Tensor, adjusted: Tensor, decay: Tensor) -> None:
    foreach._foreach_mul_(weights, 1 - lr * decay)
    scaled = foreach._foreach_mul(updates, adjusted)
    foreach._foreach_sub_(weights, scaled)


class DionMuon:
    """microsoft/dion's Muon on one device: all parameters of a shape stacked, three compiled functions."""

    def __init__(self, parameters: Sequence[Tensor], *, polar_express: bool = False) -> None:
        groups: defaultdict[torch.Size, list[Any]] = defaultdict(list)
        for entry in _matrices(parameters):
            groups[entry[0].shape].append(entry)
        self.groups = list(groups.values())
        self.momenta = torch.compile(_dion_momenta, fullgraph=True)
        self.apply = torch.compile(_dion_apply, fullgraph=True)
        self.orthogonalize = torch.compile(
            _dion_polar_express if polar_express else _dion_orthogonalize, fullgraph=True, dynamic=False
        )

    @torch.no_grad()
    def step(self) -> None:
        lr, decay, mu = torch.tensor(LR), torch.tensor(WEIGHT_DECAY), torch.tensor(MOMENTUM)
        for group in self.groups:
            weights, gradients, momenta, factors = map(list, zip(*group, strict=True))
            stack = torch.stack(self.momenta(gradients, momenta, mu))
            shape = stack.shape
            result = self.orthogonalize(stack.flatten(0, -3)).reshape(shape)
            self.apply(weights, list(result.unbind()), lr, lr * factors[0], decay)


class TorchMuon:
    """torch.optim.Muon; takes 2-D parameters only."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        parameters = _with_gradients(matrices)
        self.optimizer = torch.optim.Muon(parameters, lr=LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")

    def step(self) -> None:
        self.optimizer.step()


class TorchAdamW:
    """torch.optim.AdamW, fused."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.optimizer = torch.optim.AdamW(_with_gradients(parameters), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

    def step(self) -> None:
        self.optimizer.step()


def _with_gradients(tensors: Sequence[Tensor]) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(tensor) for tensor in tensors]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters
