"""The optimizer of a run behind the few calls the loop makes, with the attention logits it saw.

Logits are watched with every optimizer, so that a run without QK-Clip shows what clipping would have prevented.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from chogori.model.transformer import K2Model
from chogori.optim.attention_adapters import AttentionProbe
from chogori.optim.config import MuonClipConfig
from chogori.optim.muon_clip import MuonClip, build_optimizer


@dataclass(frozen=True, kw_only=True)
class AttentionReport:
    """What attention did in one step, per layer."""

    max_logits: tuple[float, ...]
    """Largest logit, or an upper bound where screening needed no exact value."""
    exact: tuple[bool, ...]
    """Whether `max_logits` is exact."""
    clipped_heads: tuple[int, ...]
    """Heads that QK-Clip scaled down."""


class StepOptimizer:
    """Updates all parameters once per step, at a learning rate that the schedule scales."""

    def __init__(self, config: MuonClipConfig, model: K2Model) -> None:
        self._optimizer = build_optimizer(model, config)
        self._base_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._rate = config.lr
        clips = isinstance(self._optimizer, MuonClip) and config.optimizer == "muonclip"
        # MuonClip with QK-Clip brings its own.
        self._probe = None if clips else AttentionProbe(model, threshold=config.qk_clip.threshold)
        self._report = AttentionReport(max_logits=(), exact=(), clipped_heads=())

    def step(self, rate_multiplier: float) -> float:
        """One update at the configured learning rate times `rate_multiplier`; returns the rate used.

        Raises NonFiniteError, before any weight changes, when an attention logit was NaN or infinite.
        """
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * rate_multiplier
        if self._probe is not None:
            layers = self._probe.monitor.collect()
            self._optimizer.step()
            self._report = _report((layer.bound_H, layer.maximum_H, 0) for layer in layers)
        else:
            assert isinstance(self._optimizer, MuonClip)
            self._optimizer.step()
            clip = self._optimizer.clip_report
            assert clip is not None
            self._report = _report((layer.bound_H, layer.maximum_H, layer.num_hot_heads) for layer in clip.layers)
        return self._rate * rate_multiplier

    def zero_grad(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def attention_report(self) -> AttentionReport:
        """Of the last step."""
        return self._report

    def describe(self) -> str:
        """Which parameters go where, for people."""
        if isinstance(self._optimizer, MuonClip):
            return self._optimizer.describe()
        count = sum(parameter.numel() for group in self._optimizer.param_groups for parameter in group["params"])
        return f"AdamW for all {count:,} parameters"

    def state_dict(self) -> dict[str, object]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict`, bit-exactly. Raises CheckpointError when it is of other parameters."""
        self._optimizer.load_state_dict(dict(state))


def _report(layers: Iterable[tuple[Tensor, Tensor, int]]) -> AttentionReport:
    """From bounds and exact maxima per head (−inf where not computed), and clipped heads, of each layer."""
    max_logits: list[float] = []
    exact: list[bool] = []
    clipped: list[int] = []
    for bound_H, maximum_H, num_clipped in layers:
        computed_H = maximum_H > -torch.inf
        top_H = torch.where(computed_H, maximum_H, bound_H)
        largest = int(top_H.argmax())
        max_logits.append(float(top_H[largest]))
        exact.append(bool(computed_H[largest]))
        clipped.append(num_clipped)
    return AttentionReport(max_logits=tuple(max_logits), exact=tuple(exact), clipped_heads=tuple(clipped))
