"""Batched Newton–Schulz: the singular values of many same-shaped matrices are driven to about 1 at once.

Shape letters: B matrices of n rows and m columns; k = min(n, m). Each step is three batched products, G = X·Xᵀ,
P = b·G + c·G², X ← a·X + P·X (for n > m the mirror image, Xᵀ·X and X·P, which needs no transposed copy).

With Muon's quintic, large matrices at least twice as long as wide take several steps before they touch X again: all
polynomials of G commute, so G itself can be carried forward, G ← (aI + P)²·G, and only the product Q of the factors is
applied to X. That replaces long products by square ones (LOG 2026-11-24).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chogori.optim.config import NewtonSchulzConfig
from chogori.optim.quintics import MUON_QUINTIC, Quintic, polar_express

MIN_GRAM_ASPECT = 2.0
"""Length over width from which a Gram matrix serves several steps. Three steps cost 12r + 6 products of k×k×k one by
one and 4r + 18 together, two 8r + 4 and 4r + 10: equal at r = 1.5."""
MAX_GRAM_GROWTH = 200.0
"""How far a Gram matrix is carried. Its smallest values, and the rounding errors of their size, grow by a² a step: a
bfloat16 error of 1e-5 stays harmless through three of Muon's quintics (error of the result 3 % of the norm against
1 %) and ruins the result after five (LOG 2026-11-24). The band of the quintic itself is ±30 %; Polar Express, which is
chosen for its narrow band, goes step by step."""
MIN_GRAM_WIDTH = 128
"""Width from which a Gram matrix serves several steps: calls, not products, cost the time of smaller ones."""


class Workspace:
    """Scratch memory that outlives a call.

    On CPU a fresh allocation of megabytes costs page faults worth a fifth of the products it serves, so one buffer per
    purpose is kept and grows to the largest request, which the caller bounds. On other devices PyTorch's caching
    allocator already does this, and nothing is kept.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor, valid until the same purpose is taken again."""
        if device.type != "cpu":
            return torch.empty(*shape, dtype=dtype, device=device)
        size = math.prod(shape)
        buffer = self._buffers.get((purpose, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=device)
            self._buffers[purpose, dtype] = buffer
        return buffer[:size].view(*shape)


def quintics(config: NewtonSchulzConfig) -> tuple[Quintic, ...]:
    """The polynomials that `config` asks for, one per step."""
    if config.coefficients == "polar_express":
        return polar_express(config.steps)
    return (MUON_QUINTIC,) * config.steps


def working_dtype(config: NewtonSchulzConfig, device: torch.device) -> torch.dtype:
    """The type of the products: as configured, or bfloat16 where `device` multiplies it natively, else float32."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    if device.type == "cuda":
        return torch.bfloat16
    return torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    # Both probes are private in torch 2.13; a release without them gets float32, which is right everywhere.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(probe()) for probe in probes if probe is not None)


def iterate(x_Bnm: Tensor, config: NewtonSchulzConfig, workspace: Workspace) -> Tensor:
    """Apply the odd polynomials of `config` to the singular values of each matrix.

    `x_Bnm` is in the working type with singular values of at most about 1. Returns `x_Bnm` itself or a tensor of
    `workspace`; the content of `x_Bnm` is lost.
    """
    batch, n, m = x_Bnm.shape
    tall = n > m
    k = min(n, m)
    gram_Bkk = workspace.take("gram", (batch, k, k), x_Bnm.dtype, x_Bnm.device)
    other_Bnm = workspace.take("product", (batch, n, m), x_Bnm.dtype, x_Bnm.device)
    for segment in segments(config, n, m):
        left_Bkn, right_Bnk = (x_Bnm.mT, x_Bnm) if tall else (x_Bnm, x_Bnm.mT)
        torch.bmm(left_Bkn, right_Bnk, out=gram_Bkk)
        scale, q_Bkk = _factor(gram_Bkk, segment, workspace)
        # The multiple of X is added inside the product, in float32: folded into Q's diagonal it would lose half its
        # digits to bfloat16 (error of the result 2.2 % instead of 1.2 %, at the same speed).
        first, second = (x_Bnm, q_Bkk) if tall else (q_Bkk, x_Bnm)
        torch.baddbmm(x_Bnm, first, second, beta=scale, out=other_Bnm)
        x_Bnm, other_Bnm = other_Bnm, x_Bnm
    return x_Bnm


def _factor(gram_Bkk: Tensor, segment: Sequence[Quintic], workspace: Workspace) -> tuple[float, Tensor]:
    """(q, Q) such that the steps of `segment` multiply X by qI + Q. The content of `gram_Bkk` is lost."""

    def take(purpose: str) -> Tensor:
        return workspace.take(purpose, gram_Bkk.shape, gram_Bkk.dtype, gram_Bkk.device)

    (a, b, c), *rest = segment
    q_Bkk = torch.baddbmm(gram_Bkk, gram_Bkk, gram_Bkk, beta=b, alpha=c, out=take("factor"))
    scale, p_Bkk = a, q_Bkk
    if rest:
        next_p_Bkk, half_Bkk, next_q_Bkk = take("polynomial"), take("half"), take("next factor")
        for next_a, b, c in rest:
            # G ← (aI + P)·G·(aI + P), P being the step before.
            torch.baddbmm(gram_Bkk, gram_Bkk, p_Bkk, beta=a, out=half_Bkk)
            torch.baddbmm(half_Bkk, half_Bkk, p_Bkk, beta=a, out=gram_Bkk)
            a = next_a
            p_Bkk = torch.baddbmm(gram_Bkk, gram_Bkk, gram_Bkk, beta=b, alpha=c, out=next_p_Bkk)
            # (aI + P)·(qI + Q) = aqI + (aQ + PQ + qP)
            torch.baddbmm(q_Bkk, p_Bkk, q_Bkk, beta=a, out=next_q_Bkk).add_(p_Bkk, alpha=scale)
            q_Bkk, next_q_Bkk = next_q_Bkk, q_Bkk
            scale *= a
    return scale, q_Bkk


def segments(config: NewtonSchulzConfig, n: int, m: int) -> list[tuple[Quintic, ...]]:
    """Which steps share one Gram matrix, for matrices of n×m: one each, or as many as rounding allows."""
    width, length = sorted((n, m))
    carries = config.coefficients == "quintic" and width >= MIN_GRAM_WIDTH and length >= MIN_GRAM_ASPECT * width
    parts: list[list[Quintic]] = []
    growth = math.inf
    for polynomial in quintics(config):
        if not carries or growth > MAX_GRAM_GROWTH:
            parts.append([])
            growth = 1.0
        parts[-1].append(polynomial)
        growth *= polynomial[0] ** 2
    return [tuple(part) for part in parts]


def normalize_(x_Bnm: Tensor, eps: float) -> Tensor:
    """Divide each matrix by its Frobenius norm, in place, so that no singular value exceeds 1."""
    norm_B11 = torch.linalg.vector_norm(x_Bnm, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    return x_Bnm.div_(norm_B11.clamp_min_(eps))


@torch.no_grad()
def orthogonalize(x: Tensor, config: NewtonSchulzConfig | None = None) -> Tensor:
    """The nearly orthogonal factor U·Vᵀ of each matrix U·S·Vᵀ in `x` [..., n, m], in the type of `x`.

    The result's singular values lie in a band around 1 that the coefficients decide: 0.68 to 1.14 for the quintic,
    narrower for Polar Express; values below about 0.01 of the Frobenius norm may stay under the band.
    """
    config = config or NewtonSchulzConfig()
    x_Bnm = x.reshape(-1, *x.shape[-2:]).to(torch.float32, copy=True)
    x_Bnm = normalize_(x_Bnm, config.eps).to(working_dtype(config, x.device))
    return iterate(x_Bnm, config, Workspace()).to(x.dtype).reshape(x.shape).clone()
