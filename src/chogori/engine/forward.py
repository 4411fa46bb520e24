"""The model as the engine runs it: many answers in one pass, over a paged latent cache, without gradients.

Projections and experts work on the rows of all answers together; attention works answer by answer or on answers of one
padded length. A row's result depends on its own answer alone, to the last bit: every product is of a kind whose rows do
not depend on each other, every sum has an order that the answer's own length decides.

All rows use the absorbed form of latent attention (see `model.attention`): in pieces of 256 tokens the expanded one,
which multiplies less for each query and key, spends as much on expanding the latents of all earlier tokens anew, and a
prompt whose beginning is in the cache would pay that for a few tokens (LOG 2026-11-24).

Shapes: N rows of a step, B rows of one group, T rows of a piece, S keys, D width, H heads, A query-key width without
position, R rotary width, V value width, K latent width, W = K + R, E experts, X experts per token, P = N·X pairs
(in attention X = T·H).
"""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor

from chogori.engine.projections import HeadProjection, Projection, SwiGLU, gated, in_parts
from chogori.engine.step_batch import DecodeGroup, PromptPiece, StepBatch, first_slot
from chogori.model.attention import MultiHeadLatentAttention
from chogori.model.config import K2Config
from chogori.model.layers import RMSNorm
from chogori.model.moe import FeedForward, MixtureOfExperts, Routing
from chogori.model.rope import rotary_table
from chogori.model.transformer import Block, K2Model

ROW_MULTIPLE = 8
"""PyTorch's float32 product of up to three rows sums in another order than that of more, and on two threads so does
that of an odd number (LOG 2026-11-24)."""
MAX_LOGITS = 16_777_216
"""Attention logits at once of one piece of a prompt: 32 MB in bfloat16."""


class PagedLatents:
    """The latents of all answers, [layers, rows, W]. Row 0 of the first block is padding and stays zero."""

    def __init__(self, config: K2Config, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        width = config.cache_numbers_per_token_and_layer
        self.rows_LCW = torch.zeros(config.num_layers, num_rows, width, dtype=dtype, device=device)


class ServedModel:
    """A `K2Model` prepared for serving. Holds weights of its own: the model it was made from can be dropped.

    Args:
        model: on a CPU or a GPU; what it computes in is `model.compute_dtype`.
    """

    def __init__(self, model: K2Model) -> None:
        self.config = model.config
        self.dtype = model.compute_dtype
        self.device = model.lm_head.weight.device
        trunk = model.model
        self._embedding_VD = trunk.embed_tokens.weight.detach().to(self.dtype, copy=True)
        self._layers = [_Layer(cast(Block, block), self.config, self.dtype) for block in trunk.layers]
        self._norm = _Norm(trunk.norm)
        self._head = Projection(model.lm_head.weight.detach().to(self.dtype))
        table = rotary_table(self.config, self.config.max_position_embeddings, self.device)
        self._turns_TC = torch.complex(table.cos_TC, table.sin_TC)

    @torch.inference_mode()
    def step(self, batch: StepBatch, latents: PagedLatents) -> Tensor:
        """Store the latents of all rows and return the logits of those that want them, float32 [wanted, vocabulary]."""
        turns_N1C = _rows(self._turns_TC, batch.positions_N).unsqueeze(1)
        x_ND = _rows(self._embedding_VD, batch.tokens_N)
        for layer, rows_CW in zip(self._layers, latents.rows_LCW, strict=True):
            x_ND = layer(x_ND, turns_N1C, batch, rows_CW)
        if not batch.logit_rows_R.numel():
            return torch.empty(0, self._head.out_features)
        return self._head(self._norm(_rows(x_ND, batch.logit_rows_R))).float()


class _Norm:
    """x · w / √(mean(x²) + ε) as (x · w√D) / √(‖x‖² + Dε): the same number, and a call on one row takes less time.

    Only functions that are rounded correctly, so that the last bit never depends on how many rows there are.
    """

    def __init__(self, norm: RMSNorm) -> None:
        width = norm.weight.shape[0]
        self.weight_D = norm.weight.detach().float() * math.sqrt(width)
        self.floor = width * norm.eps

    def __call__(self, x_ND: Tensor) -> Tensor:
        length_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True, dtype=torch.float32)
        return (x_ND * self.weight_D).div_(length_N1.square_().add_(self.floor).sqrt_()).to(x_ND.dtype)


class _Layer:
    def __init__(self, block: Block, config: K2Config, dtype: torch.dtype) -> None:
        self.attention_norm = _Norm(block.input_layernorm)
        self.attention = _Attention(block.self_attn, config, dtype)
        self.feed_forward_norm = _Norm(block.post_attention_layernorm)
        mlp = block.mlp
        self.feed_forward = _swiglu(mlp, dtype) if isinstance(mlp, FeedForward) else _Mixture(mlp, dtype)

    def __call__(self, x_ND: Tensor, turns_N1C: Tensor, batch: StepBatch, rows_CW: Tensor) -> Tensor:
        x_ND = self.attention.plus(self.attention_norm(x_ND), x_ND, turns_N1C, batch, rows_CW)
        return self.feed_forward.plus(self.feed_forward_norm(x_ND), x_ND)


class _Attention:
    def __init__(self, attention: MultiHeadLatentAttention, config: K2Config, dtype: torch.dtype) -> None:
        self.num_heads, self.scale = config.num_heads, attention.scale
        self.nope, self.rope, self.latent = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank
        compressed = config.q_lora_rank is not None
        query = attention.q_a_proj if compressed else attention.q_proj
        self.query_width = query.weight.shape[0]
        # Both read the same rows, so they are one product.
        self.down = Projection(torch.cat([query.weight, attention.kv_a_proj_with_mqa.weight]).to(dtype))
        self.query_norm = _Norm(attention.q_a_layernorm) if compressed else None
        self.query_up = Projection(attention.q_b_proj.weight.to(dtype)) if compressed else None
        self.latent_norm = _Norm(attention.kv_a_layernorm)
        up_HXK = attention.kv_b_proj.weight.detach().to(dtype).unflatten(0, (self.num_heads, -1))
        w_uk_HAK, w_uv_HVK = up_HXK.split([self.nope, config.v_head_dim], dim=1)
        self.w_uk, self.w_uv = HeadProjection(w_uk_HAK), HeadProjection(w_uv_HVK.mT)
        self.out = Projection(attention.o_proj.weight.to(dtype))

    def plus(self, x_ND: Tensor, residual_ND: Tensor, turns_N1C: Tensor, batch: StepBatch, rows_CW: Tensor) -> Tensor:
        query_NQ, latent_NK, rope_NR = self.down(x_ND).split([self.query_width, self.latent, self.rope], dim=-1)
        if self.query_norm is not None and self.query_up is not None:
            query_NQ = self.query_up(self.query_norm(query_NQ))
        q_nope_NHA, q_rope_NHR = query_NQ.unflatten(-1, (self.num_heads, -1)).split([self.nope, self.rope], dim=-1)
        # The key that all heads share is turned like one more head.
        ropes_NJR = _turn(torch.cat([q_rope_NHR, rope_NR.unsqueeze(1)], dim=1), turns_N1C)
        q_rope_NHR, k_rope_NR = ropes_NJR[:, : self.num_heads], ropes_NJR[:, self.num_heads]
        rows_CW.index_copy_(0, batch.slots_N, torch.cat([self.latent_norm(latent_NK), k_rope_NR], dim=-1))
        parts: list[Tensor] = []
        if batch.groups:
            num_decoding = batch.groups[-1].rows.stop
            parts.append(self._decode(q_nope_NHA[:num_decoding], q_rope_NHR[:num_decoding], batch.groups, rows_CW))
        for rows, piece in batch.pieces:
            parts.append(self._read(q_nope_NHA[rows], q_rope_NHR[rows], piece, rows_CW))
        mixed_NO = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.out.plus(mixed_NO, residual_ND)

    def _decode(self, q_nope: Tensor, q_rope: Tensor, groups: list[DecodeGroup], rows_CW: Tensor) -> Tensor:
        """Rows of several answers, each over its own keys."""
        q_NHW = self._queries(q_nope, q_rope)
        mixed: list[Tensor] = []
        for group in groups:
            keys_BSW = _keys(rows_CW, group.slots_BS, group.first_slot)
            logits_BHS = torch.baddbmm(group.padding_B1S, q_NHW[group.rows], keys_BSW.mT, alpha=self.scale)
            weights_BHS = logits_BHS.softmax(-1)
            # Over the rotary part too, which is dropped: a slice of the keys would be copied first.
            mixed.append(torch.bmm(weights_BHS, keys_BSW))
        return self._values(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def _read(self, q_nope: Tensor, q_rope: Tensor, piece: PromptPiece, rows_CW: Tensor) -> Tensor:
        """Rows of one answer, which share its keys; as many at once as keep the logits small."""
        num_rows, num_keys = q_nope.shape[0], piece.start + q_nope.shape[0]
        keys_SW = _keys(rows_CW, piece.slots_S[:num_keys], first_slot(piece, num_keys))
        q_THW = self._queries(q_nope, q_rope) * self.scale
        mixed: list[Tensor] = []
        rows_at_once = max(1, MAX_LOGITS // (num_keys * self.num_heads))
        for first in range(0, num_rows, rows_at_once):
            part_THW = q_THW[first : first + rows_at_once]
            num_pairs = part_THW.shape[0] * self.num_heads
            logits_XS = torch.mm(_whole_blocks(part_THW.flatten(0, 1)), keys_SW.mT)[:num_pairs]
            logits_THS = logits_XS.view(-1, self.num_heads, num_keys)
            # All rows see the keys before the first row's; only behind those do they differ.
            differing_THS = logits_THS[..., piece.start + first :]
            differing_THS += _future(part_THW.shape[0], differing_THS)
            weights_XS = logits_THS.softmax(-1).flatten(0, 1)
            mixed.append(torch.mm(_whole_blocks(weights_XS), keys_SW)[:num_pairs].view_as(part_THW))
        return self._values(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def _queries(self, q_nope_NHA: Tensor, q_rope_NHR: Tensor) -> Tensor:
        """What queries are against the latents themselves, [N, H, W]."""
        q_NHK = self.w_uk(_whole_blocks(q_nope_NHA))[: q_nope_NHA.shape[0]]
        return torch.cat([q_NHK, q_rope_NHR], dim=-1)

    def _values(self, mixed_NHW: Tensor) -> Tensor:
        """The heads' outputs side by side, from mixed latents."""
        out_NHV = self.w_uv(_whole_blocks(mixed_NHW)[..., : self.latent])
        return out_NHV[: mixed_NHW.shape[0]].flatten(1)


class _Mixture:
    def __init__(self, mixture: MixtureOfExperts, dtype: torch.dtype) -> None:
        self.router = copy.deepcopy(mixture.gate).eval()
        self.scores = Projection(mixture.gate.weight.detach().float())
        experts = mixture.experts
        self.experts = [
            SwiGLU(gate.to(dtype), up.to(dtype), down.to(dtype))
            for gate, up, down in zip(experts.gate_proj, experts.up_proj, experts.down_proj, strict=True)
        ]
        self.shared = _swiglu(mixture.shared_experts, dtype) if mixture.config.num_shared_experts else None

    def plus(self, x_ND: Tensor, residual_ND: Tensor) -> Tensor:
        routing = self.router.route(self.scores.sigmoid(x_ND.float()))
        y_NXD = self._experts_of_one(x_ND, routing) if x_ND.shape[0] == 1 else self._experts(x_ND, routing)
        routed_ND = (y_NXD * routing.weights_TK.unsqueeze(-1)).sum(1)  # in float32, as the weights are
        out_ND = residual_ND + routed_ND.to(residual_ND.dtype)
        return out_ND if self.shared is None else self.shared.plus(x_ND, out_ND)

    def _experts_of_one(self, x_1D: Tensor, routing: Routing) -> Tensor:
        """What each chosen expert makes of a single row, [1, X, D]: nothing to sort."""
        experts = [self.experts[expert] for expert in routing.experts_TK[0].tolist()]
        hidden_XF = gated(torch.cat([expert.gate_up(x_1D) for expert in experts]))
        parts = [expert.down(hidden_1F) for expert, hidden_1F in zip(experts, hidden_XF.split(1), strict=True)]
        return torch.cat(parts).unsqueeze(0)

    def _experts(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """What each chosen expert makes of each row, [N, X, D]: rows sorted by expert, one product for each."""
        num_rows, per_token = routing.experts_TK.shape
        expert_P, order_P = routing.experts_TK.flatten().sort(stable=True)
        x_PD = x_ND.index_select(0, order_P // per_token)
        counts = torch.bincount(expert_P, minlength=len(self.experts)).tolist()
        parts: list[Tensor] = []
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                parts.append(expert(x_PD[start : start + count]))
                start += count
        y_PD = torch.empty_like(x_PD).index_copy_(0, order_P, torch.cat(parts))
        return y_PD.view(num_rows, per_token, -1)


def _rows(table_CW: Tensor, indices: Tensor) -> Tensor:
    """Rows of a table, […, W] for indices […]: whole rows are copied, five times as fast as by indexing."""
    return table_CW.index_select(0, indices.flatten()).unflatten(0, indices.shape)


def _keys(rows_CW: Tensor, slots_xS: Tensor, first: int | None) -> Tensor:
    """The latents of keys, […, S, W]: not copied where they lie side by side, from `first` on."""
    if first is None:
        return _rows(rows_CW, slots_xS.to(rows_CW.device))
    return rows_CW[first : first + slots_xS.shape[-1]].view(*slots_xS.shape, -1)


def _future(num_rows: int, logits_THS: Tensor) -> Tensor:
    """−∞ at the keys that a row may not see yet, [T, 1, S]; the first row sees the first key."""
    barred_TS = logits_THS.new_full((num_rows, logits_THS.shape[-1]), float("-inf"))
    return barred_TS.triu_(1).unsqueeze(1)


def _swiglu(feed_forward: FeedForward, dtype: torch.dtype) -> SwiGLU:
    gate, up, down = feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj
    return SwiGLU(gate.weight.to(dtype), up.weight.to(dtype), down.weight.to(dtype))


def _turn(x_NxR: Tensor, turns_N1C: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) by their angles; they stay where they are, in queries and keys alike."""
    pairs = x_NxR.float().view(torch.complex64)
    return in_parts(torch.mul, pairs, turns_N1C).view(torch.float32).to(x_NxR.dtype)


def _whole_blocks(x: Tensor) -> Tensor:
    """`x` with zero rows appended up to a multiple of `ROW_MULTIPLE`, where float32 products need them."""
    missing = -x.shape[0] % ROW_MULTIPLE
    if x.dtype is not torch.float32 or not missing:
        return x
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
