"""One optimizer step, from batches to metrics: the loop that trains a model of any size on one device.

Shapes: B rows of a micro-batch, T tokens, L sparse layers, E experts.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from chogori.data import Batch, PackedLoader
from chogori.errors import NonFiniteError
from chogori.model.accounting import flops_per_token
from chogori.model.transformer import K2Model
from chogori.train.config import TrainConfig
from chogori.train.metrics import StepMetrics, StepTiming
from chogori.train.nonfinite import first_bad_activation, first_bad_gradient, first_bad_parameter
from chogori.train.optimizer import StepOptimizer


@dataclass(frozen=True)
class _DeviceBatch:
    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor
    num_targets: int


class TrainingLoop:
    """Takes steps. Knows no files and no clock but that of the metrics."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: K2Model,
        optimizer: StepOptimizer,
        loader: PackedLoader,
        device: torch.device,
        peak_flop_per_s: float,
        step: int = 0,
        tokens: int = 0,
    ) -> None:
        self.model = model.train()
        self.optimizer = optimizer
        self.loader = loader
        self.step = step
        self.tokens = tokens
        self._config = config
        self._device = device
        self._peak_flop_per_s = peak_flop_per_s
        self._flops_per_token = flops_per_token(config.model, config.sequence_length)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def take_step(self, *, rate_multiplier: float, elapsed_s: float) -> StepMetrics:
        """Train on the next `gradient_accumulation` micro-batches and update once.

        `rate_multiplier` scales the configured learning rate; `elapsed_s` is what the run took before this step.
        Raises NonFiniteError before the update when the loss or a gradient is NaN or infinite: the weights are then
        those of the last step.
        """
        start = time.perf_counter()
        waited_before_s = self.loader.wait_s
        batches = [self._to_device(self.loader.next_batch()) for _ in range(self._config.gradient_accumulation)]
        num_targets = sum(batch.num_targets for batch in batches)
        loss = self._accumulate_gradients(batches, num_targets)
        grad_norm = self._clip_gradients()
        learning_rate = self.optimizer.step(rate_multiplier)
        self.optimizer.zero_grad()
        load_LE = self.model.expert_load_LE().cpu()
        self.model.update_router_bias(self._config.router_bias_rate)

        self.step += 1
        self.tokens += self._config.tokens_per_step
        attention = self.optimizer.attention_report()
        seconds = time.perf_counter() - start
        tokens_per_s = self._config.tokens_per_step / seconds
        peak = self._peak_flop_per_s
        timing = StepTiming(
            seconds=seconds,
            tokens_per_s=tokens_per_s,
            peak_share=tokens_per_s * self._flops_per_token / peak if peak else 0.0,
            data_wait_s=self.loader.wait_s - waited_before_s,
            elapsed_s=elapsed_s + seconds,
        )
        hottest, coldest, violation = summarize_load(load_LE)
        whole_load = self.step % self._config.load_interval == 0 or self.step == 1
        return StepMetrics(
            step=self.step,
            tokens=self.tokens,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            max_logits=attention.max_logits,
            max_logits_exact=attention.exact,
            clipped_heads=attention.clipped_heads,
            load_violation=violation,
            hottest_expert=hottest,
            coldest_expert=coldest,
            expert_load=tuple(tuple(row) for row in load_LE.tolist()) if whole_load else None,
            timing=timing,
        )

    def _to_device(self, batch: Batch) -> _DeviceBatch:
        return _DeviceBatch(
            torch.as_tensor(batch.tokens_BT).to(self._device, non_blocking=True),
            torch.as_tensor(batch.targets_BT).to(self._device, non_blocking=True),
            torch.as_tensor(batch.documents_BT).to(self._device, non_blocking=True),
            batch.num_targets,
        )

    def _accumulate_gradients(self, batches: list[_DeviceBatch], num_targets: int) -> float:
        """Gradient of the mean over all targets of the step; returns that mean, in nats per token."""
        losses: list[Tensor] = []
        for number, batch in enumerate(batches, start=1):
            # Divided by the targets of the whole step, not of the micro-batch: the sum of gradients is then that of
            # one batch with all rows, however unevenly documents fill them.
            try:
                loss = self.model.loss(
                    batch.tokens_BT, batch.targets_BT, documents_BT=batch.documents_BT, normaliser=float(num_targets)
                )
            except NonFiniteError as error:  # from the observation of attention logits
                raise self._diagnosed("the forward pass", f"stopped ({error})", number, batch) from error
            loss.backward()
            losses.append(loss.detach())
        # One transfer for the whole step; the sum runs in the order of the batches.
        values = torch.stack(losses).tolist()
        for number, (value, batch) in enumerate(zip(values, batches, strict=True), start=1):
            if not math.isfinite(value):
                raise self._diagnosed("the loss", f"is {value}", number, batch)
        return float(sum(values))

    def _clip_gradients(self) -> float:
        limit = self._config.grad_clip_norm
        norm = float(
            torch.nn.utils.clip_grad_norm_(self._parameters, float("inf") if limit is None else limit, foreach=True)
        )
        if not math.isfinite(norm):
            where = (
                first_bad_gradient(self.model) or "every single gradient is finite, but their norm overflows float32"
            )
            raise NonFiniteError(self._advice(f"the gradient norm of step {self.step + 1} is {norm}: {where}"))
        return norm

    def _diagnosed(self, what: str, finding: str, number: int, batch: _DeviceBatch) -> NonFiniteError:
        """The error of a forward pass that went wrong, with the first bad tensor found by looking again."""
        model = self.model.eval()  # neither counts experts nor observes logits

        def forward() -> object:
            return model.loss(batch.tokens_BT, batch.targets_BT, documents_BT=batch.documents_BT)

        where = first_bad_parameter(model) or first_bad_activation(model, forward)
        model.train()
        where = where or "all weights and the outputs of all layers are finite; the loss itself overflows"
        place = f"step {self.step + 1}, micro-batch {number}"
        return NonFiniteError(self._advice(f"{what} of {place} {finding}: {where}"))

    def _advice(self, finding: str) -> str:
        return (
            f"{finding}. The update was not applied and checkpoints are untouched. Likely fixes: a lower "
            f"optim.lr (now {self._config.optim.lr:g}), a longer schedule.warmup_steps (now "
            f"{self._config.schedule.warmup_steps}), or precision float32"
        )


def summarize_load(
    load_LE: Tensor,
) -> tuple[tuple[int, int] | None, tuple[int, int] | None, tuple[float, ...]]:
    """Hottest and coldest (layer, expert) by share of their layer, and per layer max over mean minus 1.

    The last is MaxVio of "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts" (arXiv 2408.15664).
    """
    if load_LE.numel() == 0:
        return None, None, ()
    share_LE = load_LE.double() / load_LE.sum(1, keepdim=True).clamp_min(1)
    num_experts = load_LE.shape[1]
    hottest, coldest = int(share_LE.argmax()), int(share_LE.argmin())
    violation = (share_LE.max(1).values * num_experts - 1).tolist()
    return divmod(hottest, num_experts), divmod(coldest, num_experts), tuple(violation)
