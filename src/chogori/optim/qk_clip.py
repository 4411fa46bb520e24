"""QK-Clip: after a step, the query and key weights of heads whose attention logits passed τ are scaled down.

(a) Per head, Kimi K2 report §2.1: with S_h the largest logit of head h, γ_h = min(1, τ/S_h).
    Multi-head latent attention: query rows without position by γ^α, their key rows by γ^(1−α), rotary query rows by γ;
    the rotary key is shared by all heads and stays. Plain multi-head attention: query rows γ^α, key rows γ^(1−α).
    Grouped queries share a key: it takes κ^(1−α), κ the least γ of the group, and each query head γ_h/κ^(1−α), so that
    every head's logits scale by exactly its own γ_h.
(b) Layer-wide, the form of the first publication: η = min(τ/max, 1), queries η^α, keys η^(1−α); the rotary key rows of
    latent attention included, so that every logit of the layer scales by η.
Departure: where queries and keys pass a norm after their projection (Qwen3), scaling the projection changes nothing.
There the norms' weights, shared by the heads of a layer, are scaled instead, in both forms, by the layer's least γ.

Every rule is a factor per row of some weights; biases of projections scale with their rows. Momenta are left alone.
Shape letters: H query heads, G key heads, R rows of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chogori.errors import ConfigError
from chogori.optim.config import QKClipConfig
from chogori.optim.observation import AttentionLogitMonitor, LayerLogits
from chogori.optim.sharded import own_part, own_part_of


@dataclass(frozen=True, eq=False)
class RowFactors:
    """One factor for each row (first dimension) of a parameter."""

    parameter: nn.Parameter
    factor_R: Tensor


class ClippableAttention(Protocol):
    """What QK-Clip needs to know of an attention layer."""

    @property
    def name(self) -> str: ...
    @property
    def num_heads(self) -> int: ...

    def per_head(self, gamma_H: Tensor, alpha: float) -> list[RowFactors]:
        """Factors after which the logits of head h are gamma_H[h] times as large."""
        ...

    def layer_wide(self, eta: float, alpha: float) -> list[RowFactors]:
        """Factors after which every logit of the layer is eta times as large."""
        ...


@dataclass(frozen=True, eq=False)
class LayerClip:
    """What one step found and did in one layer; one number per head."""

    name: str
    bound_H: Tensor
    """Largest log-sum-exp, an upper bound of the logits; −inf when the layer did not report."""
    maximum_H: Tensor
    """Largest logit of the heads that screening could not clear, else −inf."""
    gamma_H: Tensor
    """The factor by which the logits were scaled; 1 for heads left alone."""

    @property
    def num_hot_heads(self) -> int:
        """Heads above the threshold."""
        return int((self.gamma_H < 1).sum())

    @property
    def max_logit(self) -> float:
        """The layer's largest logit where it was computed, else the largest bound."""
        return float(torch.where(self.maximum_H > -torch.inf, self.maximum_H, self.bound_H).max())


@dataclass(frozen=True)
class ClipReport:
    """The result of QK-Clip in one step."""

    threshold: float
    layers: tuple[LayerClip, ...]

    @property
    def num_hot_heads(self) -> int:
        """Heads above the threshold in all layers."""
        return sum(layer.num_hot_heads for layer in self.layers)

    @property
    def max_logit(self) -> float:
        """The largest logit of all layers (or its bound, where that stayed under the threshold)."""
        return max(layer.max_logit for layer in self.layers)


class QKClip:
    """Applies QK-Clip to the layers of a model. Usable beside any optimizer: call `apply` after its step."""

    def __init__(
        self,
        layers: Sequence[ClippableAttention],
        monitor: AttentionLogitMonitor,
        config: QKClipConfig,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """`monitor` observes exactly `layers`, in order. Maxima are shared over `process_group` (None: all ranks),
        whose ranks must hold the same layers."""
        if [layer.name for layer in layers] != [observer.name for observer in monitor.layers]:
            raise ConfigError("QKClip was given layers other than those its monitor observes; build both from one list")
        self.layers = tuple(layers)
        self.monitor = monitor
        self.config = config
        self.process_group = process_group

    def measure(self) -> list[LayerLogits]:
        """The largest logits since the last call, over all micro-batches and ranks.

        Raises NonFiniteError when a logit was NaN or infinite.
        """
        logits = self.monitor.collect()
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1):
            return logits
        packed = torch.cat([torch.cat((layer.bound_H, layer.maximum_H)) for layer in logits]).float()
        backend = dist.get_backend(self.process_group)
        packed = packed.cuda() if backend == "nccl" else packed
        dist.all_reduce(packed, op=dist.ReduceOp.MAX, group=self.process_group)
        parts = iter(packed.double().cpu().split([layer.num_heads for layer in self.layers for _ in range(2)]))
        return [LayerLogits(layer.name, next(parts), next(parts)) for layer in logits]

    @torch.no_grad()
    def apply(self, measured: Sequence[LayerLogits] | None = None) -> ClipReport:
        """Scale the weights of hot heads for the logits in `measured` (None: measure now)."""
        measured = self.measure() if measured is None else measured
        threshold, alpha = self.config.threshold, self.config.alpha
        report: list[LayerClip] = []
        for layer, logits in zip(self.layers, measured, strict=True):
            top_H = logits.top_H
            gamma_H = torch.ones_like(top_H)
            hot_H = top_H > threshold
            gamma_H[hot_H] = threshold / top_H[hot_H]
            if bool(hot_H.any()):
                if self.config.form == "layer":
                    eta = float(gamma_H.min())
                    gamma_H = torch.full_like(gamma_H, eta)
                    factors = layer.layer_wide(eta, alpha)
                else:
                    factors = layer.per_head(gamma_H, alpha)
                for entry in factors:
                    scale_rows_(entry)
            report.append(LayerClip(logits.name, logits.bound_H, logits.maximum_H, gamma_H))
        return ClipReport(threshold, tuple(report))


@torch.no_grad()
def scale_rows_(entry: RowFactors) -> None:
    """Multiply the rows of a parameter in place; of a sharded one, the rows or columns on this rank."""
    parameter = entry.parameter
    factor = entry.factor_R.to(torch.float64 if parameter.dtype is torch.float64 else torch.float32)
    factor = factor.to(parameter.device).view(-1, *(1,) * (parameter.ndim - 1))
    local = own_part(parameter)
    if local is not parameter:
        factor = own_part_of(factor.expand(parameter.shape).contiguous(), parameter)
    # The product is rounded to the parameter's type once.
    local.copy_(local * factor)
