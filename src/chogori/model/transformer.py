"""The Kimi K2 transformer on one device. Read it top down: a model is blocks, a block is attention and feed-forward.

Shapes: B batch, T tokens, D width, V vocabulary, L sparse layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import cast

import torch
from torch import Tensor, nn

from chogori.model import weights, weights_export
from chogori.model.attention import MultiHeadLatentAttention
from chogori.model.attention_kernels import DocumentMask
from chogori.model.cache import LatentCache
from chogori.model.config import K2Config
from chogori.model.hf_config import ModelType
from chogori.model.layers import Embedding, Linear, RMSNorm
from chogori.model.loss import IGNORE_INDEX, linear_cross_entropy
from chogori.model.moe import Experts, FeedForward, MixtureOfExperts, Router
from chogori.model.rope import RotaryTable, rotary_table


class Block(nn.Module):
    """Attention, then a dense or sparse feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: K2Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = layer < config.num_dense_layers
        self.mlp = FeedForward(config.hidden_size, config.dense_ffn_size) if dense else MixtureOfExperts(config)

    def forward(
        self, x_BTD: Tensor, rotary: RotaryTable, mask: DocumentMask | None, cache: LatentCache | None
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, mask, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Trunk(nn.Module):
    """Embedding, blocks and final norm (`model.` in the official tensor names)."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._rotary: RotaryTable | None = None

    def forward(
        self, tokens_BT: Tensor, documents_BT: Tensor | None, cache: LatentCache | None, dtype: torch.dtype
    ) -> Tensor:
        num_tokens, past = tokens_BT.shape[1], cache.length if cache is not None else 0
        rotary = self._rotary_for(past, num_tokens, tokens_BT.device)
        mask = DocumentMask.of(documents_BT)
        x_BTD = self.embed_tokens(tokens_BT).to(dtype)
        for block in self.layers:
            x_BTD = block(x_BTD, rotary, mask, cache)
        if cache is not None:
            cache.advance(num_tokens)
        return self.norm(x_BTD)

    def _rotary_for(self, past: int, num_tokens: int, device: torch.device) -> RotaryTable:
        stop = past + num_tokens
        if stop > self.config.max_position_embeddings:
            raise ValueError(
                f"{stop} tokens were given; model.max_position_embeddings is {self.config.max_position_embeddings}"
            )
        table = self._rotary
        if table is None or table.cos_TC.shape[0] < stop or table.cos_TC.device != device:
            # Grown by doubling, so that decoding one token at a time rebuilds it rarely.
            table = rotary_table(self.config, min(2 * stop, self.config.max_position_embeddings), device)
            self._rotary = table
        return table.at(past, num_tokens)


class K2Model(nn.Module):
    """A Kimi K2 language model.

    Args:
        config: sizes; `K2Config.preset("nano")` and others.
        seed: seed of the initial weights; None draws from PyTorch's global generator.

    `compute_dtype` is the type of activations: the parameters' own unless set, bfloat16 in training with float32
    parameters.
    """

    def __init__(self, config: K2Config, *, seed: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.compute_dtype = self.lm_head.weight.dtype
        if not self.lm_head.weight.is_meta:
            self.initialize(seed)

    @torch.no_grad()
    def initialize(self, seed: int | None = None) -> None:
        """Fill every matrix from N(0, initializer_range²), norms with ones and router biases with zeros."""
        generator = None
        if seed is not None:
            generator = torch.Generator(self.lm_head.weight.device).manual_seed(seed)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, nn.Linear | nn.Embedding | Router | Experts):
                for parameter in module.parameters(recurse=False):
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)
            if isinstance(module, Router):
                module.e_score_correction_bias.zero_()
                module.load_E.zero_()

    def forward(
        self, tokens_BT: Tensor, *, documents_BT: Tensor | None = None, cache: LatentCache | None = None
    ) -> Tensor:
        """Logits of the next token, float32 [B, T, V], from tokens int64 [B, T].

        `documents_BT` numbers the documents packed in a row; a token attends only inside its own. With a `cache`, the
        tokens follow those already in it, and the absorbed form of attention runs.
        """
        hidden_BTD = self.model(tokens_BT, documents_BT, cache, self.compute_dtype)
        return self.lm_head(hidden_BTD).float()

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        normaliser: float | None = None,
    ) -> Tensor:
        """Negative log-likelihood of the targets in nats, summed and divided by `normaliser`, a float32 scalar.

        Targets of −100 count for nothing. `normaliser` is by default the number of the others; a trainer that
        accumulates gradients passes the number in the whole step. The sequence-balance loss, if configured, is added
        with the share of the step that this call holds.
        """
        num_targets = int((targets_BT != IGNORE_INDEX).sum())
        normaliser = float(max(num_targets, 1)) if normaliser is None else normaliser
        hidden_ND = self.model(tokens_BT, documents_BT, None, self.compute_dtype).flatten(0, 1)
        head_VD = self.lm_head.weight.to(hidden_ND.dtype)
        loss = linear_cross_entropy(hidden_ND, head_VD, targets_BT.flatten(), normaliser)
        balance = [moe.balance_loss for moe in self._sparse_layers() if moe.balance_loss is not None]
        if balance:
            loss = loss + torch.stack(balance).sum() * (self.config.sequence_balance_weight * num_targets / normaliser)
        return loss

    def _sparse_layers(self) -> Iterator[MixtureOfExperts]:
        return (
            block.mlp for block in cast(Iterator[Block], self.model.layers) if isinstance(block.mlp, MixtureOfExperts)
        )

    def expert_load_LE(self) -> Tensor:
        """Tokens that each expert of each sparse layer received in training since the last update, int64 [L, E]."""
        loads = [moe.gate.load_E for moe in self._sparse_layers()]
        return torch.stack(loads) if loads else torch.zeros(0, self.config.num_experts, dtype=torch.int64)

    def update_router_bias(self, rate: float) -> None:
        """Balance the experts: every router's bias moves by `rate` against its load, which starts again from zero."""
        for moe in self._sparse_layers():
            moe.gate.update_bias(rate)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> K2Model:
        """Load a Hugging Face folder, `model_type` kimi_k2 or deepseek_v3, block FP8 included; see `weights`."""
        return weights.load_pretrained(cls, folder, dtype=dtype, device=device)

    def save_pretrained(
        self,
        folder: str | PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        max_shard_bytes: int = weights_export.MAX_SHARD_BYTES,
        model_type: ModelType = "deepseek_v3",
    ) -> None:
        """Write a Hugging Face folder with the official tensor names; see `weights_export`."""
        weights_export.save_pretrained(
            self, folder, dtype=dtype, max_shard_bytes=max_shard_bytes, model_type=model_type
        )
