"""Multi-head latent attention (DeepSeek-V2 report, §2.1; Kimi K2 report, §2.3), in two equal forms.

Expanded, for training: the latent is turned into full keys and values. Absorbed, for decoding: the projections that
would expand the latent are folded into queries and outputs, so that the cache holds one latent for all heads.

Shapes: B batch, T tokens, S cached tokens, D width, H heads, N no-rope width, R rotary width, V value width, K latent
width, W = K + R, Q = N + R.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from chogori.model.attention_kernels import DocumentMask, latent_attention
from chogori.model.cache import LatentCache
from chogori.model.config import K2Config
from chogori.model.layers import Linear, RMSNorm
from chogori.model.rope import RotaryTable, attention_scale, rotate

LogitObserver = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], None]
"""Called with q and k [B, H, T, Q], log-sum-exp float32 [B, H, T], the scale, and documents [B, T] or None."""

LATENT_NORM_EPS = 1e-6
"""Of the two norms inside attention; DeepSeek's own code and transformers fix it, whatever `rms_norm_eps` says."""


class MultiHeadLatentAttention(nn.Module):
    """Attention of one block. Parameter names are the official ones."""

    def __init__(self, config: K2Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.qk_nope_head_dim = config.qk_nope_head_dim
        self.qk_rope_head_dim = config.qk_rope_head_dim
        self.v_head_dim = config.v_head_dim
        self.kv_lora_rank = config.kv_lora_rank
        self.scale = attention_scale(config)
        width, heads = config.hidden_size, config.num_heads
        if config.q_lora_rank is None:
            self.q_proj = Linear(width, heads * config.qk_head_dim)
        else:
            self.q_a_proj = Linear(width, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(width, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(heads * config.v_head_dim, width)
        self.logit_observer: LogitObserver | None = None

    def forward(
        self, x_BTD: Tensor, rotary: RotaryTable, mask: DocumentMask | None = None, cache: LatentCache | None = None
    ) -> Tensor:
        """[B, T, D] to [B, T, D]; with a cache, T new tokens after those cached, in the absorbed form."""
        q_BTHQ = self._queries(x_BTD)
        latent_BTK, k_rope_BTR = self.kv_a_proj_with_mqa(x_BTD).split([self.kv_lora_rank, self.qk_rope_head_dim], -1)
        latent_BTK = self.kv_a_layernorm(latent_BTK)
        if cache is not None:
            out_BTHV = self._absorbed(q_BTHQ, latent_BTK, k_rope_BTR, rotary, cache)
        else:
            out_BTHV = self._expanded(q_BTHQ, latent_BTK, k_rope_BTR, rotary, mask)
        return self.o_proj(out_BTHV.flatten(-2))

    def _queries(self, x_BTD: Tensor) -> Tensor:
        if hasattr(self, "q_proj"):
            q_BTX = self.q_proj(x_BTD)
        else:
            q_BTX = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        return q_BTX.unflatten(-1, (self.num_heads, -1))

    def _expanded(
        self, q_BTHQ: Tensor, latent_BTK: Tensor, k_rope_BTR: Tensor, rotary: RotaryTable, mask: DocumentMask | None
    ) -> Tensor:
        kv_BTHX = self.kv_b_proj(latent_BTK).unflatten(-1, (self.num_heads, -1))
        observer = self.logit_observer if self.training else None
        return latent_attention(q_BTHQ, kv_BTHX, k_rope_BTR, rotary, scale=self.scale, mask=mask, observer=observer)

    def _absorbed(
        self, q_BTHQ: Tensor, latent_BTK: Tensor, k_rope_BTR: Tensor, rotary: RotaryTable, cache: LatentCache
    ) -> Tensor:
        # k_nope = W_uk c, so q·k_nope = (W_ukᵀ q)·c; v = W_uv c, so Σ p v = W_uv Σ p c.
        up_HXK = self.kv_b_proj.weight.to(q_BTHQ.dtype).unflatten(0, (self.num_heads, -1))
        w_uk_HNK, w_uv_HVK = up_HXK.split([self.qk_nope_head_dim, self.v_head_dim], dim=1)
        q_nope_BTHN, q_rope_BTHR = q_BTHQ.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        q_latent_BTHK = torch.einsum("bthn,hnk->bthk", q_nope_BTHN, w_uk_HNK)
        q_BTHW = torch.cat([q_latent_BTHK, rotate(q_rope_BTHR, rotary)], dim=-1)
        k_rope_BTR = rotate(k_rope_BTR.unsqueeze(2), rotary).squeeze(2)
        past = cache.length
        keys_BSW = cache.extend(self.layer, torch.cat([latent_BTK, k_rope_BTR], dim=-1)).to(q_BTHW.dtype)
        logits_BHTS = torch.einsum("bthw,bsw->bhts", q_BTHW, keys_BSW).float() * self.scale
        num_new, num_keys = q_BTHW.shape[1], keys_BSW.shape[1]
        if num_new > 1:
            future_TS = torch.ones(num_new, num_keys, dtype=torch.bool, device=keys_BSW.device).triu(past + 1)
            logits_BHTS = logits_BHTS.masked_fill(future_TS, float("-inf"))
        weights_BHTS = logits_BHTS.softmax(-1).to(q_BTHW.dtype)
        mixed_BTHK = torch.einsum("bhts,bsk->bthk", weights_BHTS, keys_BSW[..., : self.kv_lora_rank])
        return torch.einsum("bthk,hvk->bthv", mixed_BTHK, w_uv_HVK)
