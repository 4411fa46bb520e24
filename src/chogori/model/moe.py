"""Feed-forward layers: the dense SwiGLU, the router, and the mixture of experts.

Balancing is without auxiliary loss (arXiv 2408.15664): a bias per expert takes part in the choice only, and moves a
little after every step towards the experts that had too few tokens.

Shapes: B batch, T tokens (all of a batch where there is no B), D width, F inner width, E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from chogori.model.config import K2Config
from chogori.model.expert_kernels import routed_experts, visited_experts
from chogori.model.layers import Linear

FEW_PAIRS_PER_EXPERT = 4
"""Without gradients and up to this many (token, expert) pairs per expert, only visited experts are read."""


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where each token goes."""

    scores_TE: Tensor
    """Sigmoid scores, float32."""
    experts_TK: Tensor
    """Chosen experts, int64."""
    weights_TK: Tensor
    """Their weights, normalised and scaled, float32."""


class Router(nn.Module):
    """Sigmoid scores and a biased choice of the top K experts (DeepSeek-V3 report, §2.1.2). Computed in float32."""

    e_score_correction_bias: Tensor
    load_E: Tensor

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts, dtype=torch.float32))
        # Tokens routed to each expert since the last bias update.
        self.register_buffer("load_E", torch.zeros(config.num_experts, dtype=torch.int64), persistent=False)

    def forward(self, x_TD: Tensor) -> Routing:
        routing = self.route(functional.linear(x_TD.float(), self.weight.float()).sigmoid())
        if self.training:
            with torch.no_grad():
                self.load_E += torch.bincount(routing.experts_TK.flatten(), minlength=self.config.num_experts)
        return routing

    def route(self, scores_TE: Tensor) -> Routing:
        """The choice and the weights that follow from sigmoid scores."""
        config = self.config
        with torch.no_grad():
            choice_TE = self._limit_to_groups(scores_TE + self.e_score_correction_bias)
            experts_TK = choice_TE.topk(config.num_experts_per_token, dim=-1, sorted=False).indices
        weights_TK = scores_TE.gather(1, experts_TK)
        if config.normalize_routing_weights:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return Routing(scores_TE=scores_TE, experts_TK=experts_TK, weights_TK=weights_TK * config.routed_scaling_factor)

    def _limit_to_groups(self, choice_TE: Tensor) -> Tensor:
        """Keep only the groups whose two best experts sum highest (DeepSeek-V3's node limit; K2 has one group)."""
        config = self.config
        if config.num_expert_groups == 1:
            return choice_TE
        grouped = choice_TE.unflatten(-1, (config.num_expert_groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(config.num_groups_per_token, dim=-1, sorted=False).indices
        closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, False)
        return grouped.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(-2)

    @torch.no_grad()
    def update_bias(self, rate: float) -> None:
        """Move each bias by `rate` towards balance and start counting anew."""
        load_E = self.load_E.to(torch.float32)
        self.e_score_correction_bias += rate * torch.sign(load_E.mean() - load_E)
        self.load_E.zero_()


class Experts(nn.Module):
    """The routed experts' weights, one 3-D tensor per projection."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        experts, width, inner = config.num_experts, config.hidden_size, config.expert_ffn_size
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        num_pairs, num_experts = routing.experts_TK.numel(), self.gate_proj.shape[0]
        if (
            not torch.is_grad_enabled()
            and x_TD.device.type == "cpu"
            and num_pairs <= FEW_PAIRS_PER_EXPERT * num_experts
        ):
            return visited_experts(
                x_TD, routing.experts_TK, routing.weights_TK, self.gate_proj, self.up_proj, self.down_proj
            )
        gate_up_EXD = torch.cat([self.gate_proj.to(x_TD.dtype), self.up_proj.to(x_TD.dtype)], dim=1)
        down_EDF = self.down_proj.to(x_TD.dtype)
        return routed_experts(x_TD, routing.experts_TK, routing.weights_TK, gate_up_EXD, down_EDF)


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared one(s) that every token visits."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.config = config
        self.gate = Router(config)
        self.experts = Experts(config)
        if config.num_shared_experts:
            self.shared_experts = FeedForward(config.hidden_size, config.expert_ffn_size * config.num_shared_experts)
        self.balance_loss: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_TD = x_BTD.flatten(0, -2)
        routing = self.gate(x_TD)
        self.balance_loss = None
        if self.training and self.config.sequence_balance_weight:
            self.balance_loss = sequence_balance_loss(routing, num_sequences=x_BTD.shape[0])
        out_BTD = self.experts(x_TD, routing).view_as(x_BTD)
        if self.config.num_shared_experts:
            out_BTD = out_BTD + self.shared_experts(x_BTD)
        return out_BTD


def sequence_balance_loss(routing: Routing, *, num_sequences: int) -> Tensor:
    """Σ_e f_e · P_e averaged over sequences (DeepSeek-V3 report, eq. 17–20), without its weight; a scalar.

    f_e is expert e's share of a sequence's choices times E, P_e the mean of its normalised score; both 1 on average,
    so a balanced router gives 1.
    """
    scores_BTE = routing.scores_TE.unflatten(0, (num_sequences, -1))
    num_experts, experts_per_token = scores_BTE.shape[-1], routing.experts_TK.shape[-1]
    share_BTE = scores_BTE / scores_BTE.sum(-1, keepdim=True)
    chosen_BX = routing.experts_TK.view(num_sequences, -1)
    count_BE = torch.zeros(num_sequences, num_experts, device=chosen_BX.device)
    count_BE.scatter_add_(1, chosen_BX, torch.ones_like(chosen_BX, dtype=torch.float32))
    frequency_BE = count_BE * (num_experts / (experts_per_token * scores_BTE.shape[1]))
    return (frequency_BE * share_BTE.mean(1)).sum(-1).mean()
