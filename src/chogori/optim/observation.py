"""How large the attention logits of a training step were, almost for free: log-sum-exp screening.

A flash kernel returns for each query row the log-sum-exp of its logits. With n visible keys,
lse − ln(n) ≤ largest logit ≤ lse, so a head whose largest log-sum-exp stays under the threshold τ needs nothing, and
that is exact. Only for the other, hot heads is the maximum recomputed (`exact_maxima`).

Shape letters: B sequences, H query heads, G key heads (G divides H), T query positions, S key positions, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from chogori.errors import ConfigError, NonFiniteError
from chogori.optim.exact_maxima import exact_maxima

P = ParamSpec("P")
R = TypeVar("R")

MARGIN = 1e-3
"""Heads are recomputed from (1 − MARGIN)·τ on; rounding in a kernel's log-sum-exp is far smaller."""


@dataclass(frozen=True, eq=False)
class _Pending:
    """What one layer reported in the current micro-batch."""

    top_H: Tensor
    """Largest log-sum-exp, or the exact maximum, of each head."""
    exact: bool
    q_BHTd: Tensor | None = None
    k_BGSd: Tensor | None = None
    lse_BHT: Tensor | None = None
    scale: float = 1.0
    documents_BT: Tensor | None = None
    mask_BHTS: Tensor | None = None
    causal: bool = True

    def maxima_of(self, heads: Tensor) -> Tensor:
        """The exact maxima of the chosen heads, still on the device."""
        assert self.q_BHTd is not None
        assert self.k_BGSd is not None
        return exact_maxima(
            self.q_BHTd,
            self.k_BGSd,
            self.scale,
            heads,
            lse_BHT=self.lse_BHT,
            documents_BT=self.documents_BT,
            mask_BHTS=self.mask_BHTS,
            causal=self.causal,
        )


@dataclass(frozen=True, eq=False)
class LayerLogits:
    """The largest logits of one layer since the last collection; one number per head."""

    name: str
    bound_H: Tensor
    """Largest log-sum-exp: no logit exceeded it. −inf when the layer did not report."""
    maximum_H: Tensor
    """The largest logit of the micro-batches that screening could not clear, else −inf. Exact from (1 − MARGIN)·τ on;
    below, a cleared micro-batch may have held a larger one, which was under τ as well."""

    @property
    def top_H(self) -> Tensor:
        """The largest logit where it was computed, else the bound. Above τ exactly when a logit was."""
        return torch.where(self.maximum_H > -math.inf, self.maximum_H, self.bound_H)


def _outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Keep torch.compile out of what holds references and tells micro-batches apart."""
    return cast("Callable[P, R]", torch.compiler.disable(function))


class LayerObserver:
    """What an attention layer calls in a training forward, with the queries and keys of its logits."""

    def __init__(self, monitor: AttentionLogitMonitor, name: str, num_heads: int) -> None:
        self.name = name
        self.num_heads = num_heads
        self._monitor = monitor
        self.pending: _Pending | None = None

    @_outside_graphs
    def __call__(
        self,
        q_BHTd: Tensor,
        k_BGSd: Tensor,
        lse_BHT: Tensor,
        scale: float,
        documents_BT: Tensor | None = None,
        *,
        mask_BHTS: Tensor | None = None,
        causal: bool = True,
    ) -> None:
        """Report logits q·k·scale whose natural log-sum-exp per query row, mask applied, is `lse_BHT`.

        `documents_BT` numbers the documents of packed rows: a token sees its own document only. `mask_BHTS` is a
        boolean mask (True: visible), broadcast over B and H.
        """
        if _in_backward():
            return  # Activation checkpointing runs the forward again; these logits have been seen.
        monitor = self._monitor
        if self.pending is not None:
            monitor.flush()
        lse_BHT = lse_BHT.detach()
        top_H = lse_BHT.amax(dim=(0, 2))
        if monitor.threshold is None or not monitor.exact:
            self.pending = _Pending(top_H, exact=False)
            return
        self.pending = _Pending(
            top_H,
            False,
            q_BHTd.detach(),
            k_BGSd.detach(),
            lse_BHT,
            float(scale),
            documents_BT,
            mask_BHTS,
            causal,
        )

    @_outside_graphs
    def report_maximum(self, max_BHT: Tensor) -> None:
        """Report exact row maxima of the scaled logits, from a kernel that returns them (flex_attention on GPU)."""
        if _in_backward():
            return
        if self.pending is not None:
            self._monitor.flush()
        self.pending = _Pending(max_BHT.detach().amax(dim=(0, 2)), exact=True)


class AttentionLogitMonitor:
    """Collects the largest attention logit of every head over the micro-batches of a step.

    Between two reports of a layer nothing leaves the device. When a layer reports again (a new micro-batch) or at
    `collect`, the numbers of all layers come to the host in one transfer.
    """

    def __init__(self, *, threshold: float | None = 100.0, exact: bool = True) -> None:
        """`threshold` None only bounds the logits; `exact` False never recomputes (see QKClipConfig)."""
        if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
            raise ConfigError(f"the threshold of attention logits is {threshold:g}; expected above 0, such as 100")
        self.threshold = threshold
        self.exact = exact
        self.layers: list[LayerObserver] = []
        self._bounds: list[Tensor] = []
        self._maxima: list[Tensor] = []

    def observer(self, name: str, num_heads: int) -> LayerObserver:
        """The callable for one more attention layer."""
        observer = LayerObserver(self, name, num_heads)
        self.layers.append(observer)
        self._bounds.append(torch.full((num_heads,), -math.inf, dtype=torch.float64))
        self._maxima.append(torch.full((num_heads,), -math.inf, dtype=torch.float64))
        return observer

    @torch.no_grad()
    def flush(self) -> None:
        """Take up what is pending and let go of its queries and keys.

        Raises NonFiniteError when a logit was NaN or infinite.
        """
        reported = [(index, layer.pending) for index, layer in enumerate(self.layers)]
        pending = [(index, entry) for index, entry in reported if entry is not None]
        for layer in self.layers:
            layer.pending = None
        tops = _to_host([entry.top_H for _, entry in pending])
        found: list[tuple[int, Tensor, Tensor]] = []
        for (index, entry), top_H in zip(pending, tops, strict=True):
            top_H = top_H.double()
            if not bool((top_H < math.inf).all()):  # NaN compares false
                head = int((~(top_H < math.inf)).nonzero()[0])
                raise NonFiniteError(
                    f"an attention logit of {self.layers[index].name}, head {head}, is NaN or infinite; the weights "
                    "were left as they are. Look at the loss and gradients of this step, or lower the learning rate"
                )
            torch.maximum(self._bounds[index], top_H, out=self._bounds[index])
            if entry.exact:
                torch.maximum(self._maxima[index], top_H, out=self._maxima[index])
            elif entry.q_BHTd is not None and self.threshold is not None:
                hot_H = top_H >= self.threshold * (1 - MARGIN)
                if bool(hot_H.any()):
                    heads = hot_H.nonzero()[:, 0]
                    found.append((index, heads, entry.maxima_of(heads)))
        for (index, heads, _), values in zip(found, _to_host([values for *_, values in found]), strict=True):
            self._maxima[index][heads] = torch.maximum(self._maxima[index][heads], values.double())

    def collect(self) -> list[LayerLogits]:
        """The largest logits since the last call, in the order the layers were added; starts anew."""
        self.flush()
        result = [
            LayerLogits(layer.name, bound_H, maximum_H)
            for layer, bound_H, maximum_H in zip(self.layers, self._bounds, self._maxima, strict=True)
        ]
        self._bounds = [torch.full_like(bound_H, -math.inf) for bound_H in self._bounds]
        self._maxima = [torch.full_like(maximum_H, -math.inf) for maximum_H in self._maxima]
        return result


def _in_backward() -> bool:
    # What torch.utils.checkpoint itself asks to tell a recomputation from a first forward.
    return torch._C._current_graph_task_id() != -1  # pyright: ignore


def _to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the host, one transfer per device."""
    by_device: dict[torch.device, list[int]] = {}
    for position, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(position)
    result: list[Tensor] = list(tensors)
    for positions in by_device.values():
        wide = any(tensors[position].dtype is torch.float64 for position in positions)
        dtype = torch.float64 if wide else torch.float32
        packed = torch.cat([tensors[position].to(dtype) for position in positions]).cpu()
        sizes = [tensors[position].numel() for position in positions]
        for position, part in zip(positions, packed.split(sizes), strict=True):
            result[position] = part
    return result
