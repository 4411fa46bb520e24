"""Tiny random models whose attention the optimizer's tests clip."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 48


def llama(
    *, heads: int = 4, key_heads: int = 2, head_dim: int = 8, bias: bool = False, layers: int = 2
) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            head_dim=head_dim,
            attention_bias=bias,
        )
    )


def qwen3(*, heads: int = 4, key_heads: int = 2, head_dim: int = 8, layers: int = 2) -> PreTrainedModel:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            head_dim=head_dim,
        )
    )


def deepseek_v3(
    *,
    heads: int = 4,
    q_lora_rank: int | None = 16,
    nope: int = 8,
    rope: int = 4,
    value: int = 6,
    bias: bool = False,
    layers: int = 2,
) -> PreTrainedModel:
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            moe_intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            n_shared_experts=1,
            n_routed_experts=4,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            q_lora_rank=q_lora_rank,
            kv_lora_rank=16,
            qk_nope_head_dim=nope,
            qk_rope_head_dim=rope,
            v_head_dim=value,
            n_group=1,
            topk_group=1,
            attention_bias=bias,
            experts_implementation="eager",  # grouped products take no float64  # pyright: ignore[reportCallIssue]
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):  # transformers leaves the router uninitialised
            nn.init.normal_(parameter, std=0.02)
    return model


class ObservedAttention(nn.Module):
    """The least a module of one's own needs for QK-Clip: q_proj, k_proj, head_dim, and a call of `logit_observer`."""

    def __init__(self, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, key_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, key_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.logit_observer: Callable[..., None] | None = None

    def forward(self, x_BTD: Tensor, documents_BT: Tensor) -> Tensor:
        batch, tokens, width = x_BTD.shape
        q, k, v = (
            projection(x_BTD).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        groups = q.shape[1] // k.shape[1]
        scale = self.head_dim**-0.5
        logits = q @ k.repeat_interleave(groups, dim=1).mT * scale
        visible = torch.ones(tokens, tokens, dtype=torch.bool).tril() & (
            documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
        )
        logits = logits.masked_fill(~visible, -torch.inf)
        if self.training and self.logit_observer is not None:
            self.logit_observer(q.detach(), k.detach(), logits.detach().logsumexp(-1).float(), scale, documents_BT)
        values = logits.softmax(-1) @ v.repeat_interleave(groups, dim=1)
        return self.o_proj(values.transpose(1, 2).reshape(batch, tokens, width))


class PackedModel(nn.Module):
    """Embedding, one `ObservedAttention`, head; packed documents."""

    def __init__(self, width: int = 16, heads: int = 4, key_heads: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.attention = ObservedAttention(width, heads, key_heads)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor) -> Tensor:
        x = self.embedding(tokens_BT)
        logits = self.head(x + self.attention(x, documents_BT))
        return F.cross_entropy(logits.flatten(0, 1), tokens_BT.flatten())


def loss_of(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    return model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss


def random_tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def brute_force_logits(
    q_BHTd: Tensor, k_BGSd: Tensor, scale: float, visible: Tensor | None = None, *, causal: bool = True
) -> Tensor:
    """[B, H, T, S] in float64, −inf where hidden."""
    k = k_BGSd.double().repeat_interleave(q_BHTd.shape[1] // k_BGSd.shape[1], dim=1)
    logits = q_BHTd.double() @ k.mT * scale
    if causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return logits if visible is None else logits.masked_fill(~visible, -torch.inf)
