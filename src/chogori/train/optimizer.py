"""The optimizer of a run behind the few calls the loop makes, with the attention logits it saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import torch
from chogori.model.transformer import K2Model
from chogori.train.config import TrainConfig


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

    def __init__(self, config: TrainConfig, model: K2Model) -> None:
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, fused=True)
        self._base_rates = [float(group["lr"]) for group in self._optimizer.param_groups]

    def step(self, rate_multiplier: float) -> float:
        """One update at the configured learning rate times `rate_multiplier`; returns the rate used."""
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * rate_multiplier
        self._optimizer.step()
        return self._base_rates[0] * rate_multiplier

    def zero_grad(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def attention_report(self) -> AttentionReport:
        """Of the last step."""
        return AttentionReport(max_logits=(), exact=(), clipped_heads=())

    def describe(self) -> str:
        """Which parameters go where, for people."""
        return "adamw"

    def state_dict(self) -> dict[str, object]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self._optimizer.load_state_dict(dict(state))
