"""Causal attention of the expanded form, forward and backward, with the log-sum-exp that QK-Clip's screening reads.

Two kernels compute the same thing. `flash` calls PyTorch's flash kernel; since that needs values as wide as keys, the
values are padded. `blocked` is the same algorithm written with batched matrix products, for bfloat16 on a CPU, where
those run on the matrix units and PyTorch's flash kernel does not (measured, LOG 2026-11-23).

Shapes: B batch, T tokens, H heads, G = B·H, N no-rope width, R rotary width, V value width, Q = N + R, X = N + V.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from chogori.model.rope import RotaryTable, rotate

if TYPE_CHECKING:
    from chogori.model.attention import LogitObserver

BLOCK_ROWS = 128
"""Query rows per block: the fastest of 64, 128 and 256 at 512 and 2,048 tokens (measured, LOG 2026-11-23)."""


class DocumentMask:
    """Which tokens of a packed row belong together: a token attends only inside its document."""

    def __init__(self, documents_BT: Tensor) -> None:
        self.documents_BT = documents_BT

    @classmethod
    def of(cls, documents_BT: Tensor | None) -> DocumentMask | None:
        """The mask of packed rows, or None when no row holds a second document."""
        if documents_BT is None or bool((documents_BT == documents_BT[:, :1]).all()):
            return None
        return cls(documents_BT)

    def hidden(self, start: int, stop: int) -> Tensor:
        """True where a query in `start:stop` may not see a key in `0:stop`, bool [B, 1, stop − start, stop]."""
        documents_BT = self.documents_BT
        return (documents_BT[:, start:stop, None] != documents_BT[:, None, :stop]).unsqueeze(1)

    def visible_square(self) -> Tensor:
        """True where a query may see a key, causality included, bool [B, 1, T, T]."""
        length = self.documents_BT.shape[1]
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=self.documents_BT.device).tril()
        return causal_TT & ~self.hidden(0, length)


def latent_attention(
    q_BTHQ: Tensor,
    kv_BTHX: Tensor,
    k_rope_BTR: Tensor,
    rotary: RotaryTable,
    *,
    scale: float,
    mask: DocumentMask | None = None,
    observer: LogitObserver | None = None,
) -> Tensor:
    """Causal attention of queries [no-rope | rope], expanded keys and values [no-rope | value], and the shared key.

    Rotary parts come unrotated. Returns [B, T, H, V] in the input's type. `observer` receives what it is documented to.
    """
    if q_BTHQ.device.type == "cpu" and q_BTHQ.dtype is torch.bfloat16:
        out_BTHV, q_BHTQ, k_BHTQ, lse_BHT = cast(
            tuple[Tensor, Tensor, Tensor, Tensor],
            _BlockedAttention.apply(q_BTHQ, kv_BTHX, k_rope_BTR, rotary, scale, mask),
        )
    else:
        out_BTHV, q_BHTQ, k_BHTQ, lse_BHT = flash_attention(q_BTHQ, kv_BTHX, k_rope_BTR, rotary, scale, mask)
    if observer is not None:
        observer(q_BHTQ.detach(), k_BHTQ.detach(), lse_BHT.detach(), scale, None if mask is None else mask.documents_BT)
    return out_BTHV


def flash_attention(
    q_BTHQ: Tensor,
    kv_BTHX: Tensor,
    k_rope_BTR: Tensor,
    rotary: RotaryTable,
    scale: float,
    mask: DocumentMask | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rope = k_rope_BTR.shape[-1]
    nope = q_BTHQ.shape[-1] - rope
    heads, v_width = q_BTHQ.shape[2], kv_BTHX.shape[-1] - nope
    q_nope_BTHN, q_rope_BTHR = q_BTHQ.split([nope, rope], dim=-1)
    k_nope_BTHN, v_BTHV = kv_BTHX.split([nope, v_width], dim=-1)
    k_rope_BTHR = rotate(k_rope_BTR.unsqueeze(2), rotary).expand(-1, -1, heads, -1)
    q_BHTQ = torch.cat([q_nope_BTHN, rotate(q_rope_BTHR, rotary)], dim=-1).transpose(1, 2)
    k_BHTQ = torch.cat([k_nope_BTHN, k_rope_BTHR], dim=-1).transpose(1, 2)
    # Query-key and value widths must agree for the flash kernel; whichever is narrower is padded with zeros.
    width = max(nope + rope, v_width)
    q, k, v = (torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (q_BHTQ, k_BHTQ, v_BTHV.transpose(1, 2)))
    out_BHTV, lse_BHT = _flash_kernel(q, k, v, scale, mask)
    return out_BHTV[..., :v_width].transpose(1, 2), q_BHTQ, k_BHTQ, lse_BHT


def _flash_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: DocumentMask | None) -> tuple[Tensor, Tensor]:
    """PyTorch's fused kernels that return the log-sum-exp: output [B, H, T, width] and float32 [B, H, T]."""
    aten, causal = torch.ops.aten, mask is None
    bias = None if mask is None else _additive(mask, q.dtype)
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    elif causal and q.dtype in (torch.float16, torch.bfloat16):
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, scale=scale)[:2]
    else:
        if bias is not None:
            bias = bias.expand(-1, q.shape[1], -1, -1)
        out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, causal, scale=scale)[:2]
        lse = lse[..., : q.shape[2]]  # this kernel pads its rows
    return out, lse


def _additive(mask: DocumentMask, dtype: torch.dtype) -> Tensor:
    """0 where a query may see a key and −∞ elsewhere, [B, 1, T, T], rows at multiples of eight as CUDA demands."""
    visible_B1TT = mask.visible_square()
    length = visible_B1TT.shape[-1]
    shape = (*visible_B1TT.shape[:-1], -(-length // 8) * 8)
    bias = torch.full(shape, float("-inf"), dtype=dtype, device=visible_B1TT.device)
    return bias[..., :length].masked_fill_(visible_B1TT, 0.0)


class _BlockedAttention(Function):
    """Flash attention over blocks of query rows, each a few batched products.

    Two extra columns of q (against ones in k) carry −log-sum-exp, and two of the output's gradient (against ones in v)
    carry −Σ o·do, each as a bfloat16 pair whose sum is exact to 16 bits. So the product itself subtracts them in
    float32, before its result is rounded, and two passes over the block are saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BTHQ: Tensor,
        kv_BTHX: Tensor,
        k_rope_BTR: Tensor,
        rotary: RotaryTable,
        scale: float,
        mask: DocumentMask | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, length, heads, qk_width = q_BTHQ.shape
        rope = k_rope_BTR.shape[-1]
        nope = qk_width - rope
        v_width = kv_BTHX.shape[-1] - nope
        q_BHTQ2 = q_BTHQ.new_zeros(batch, heads, length, qk_width + 2)
        q_BHTQ2[..., :nope] = q_BTHQ[..., :nope].transpose(1, 2)
        q_BHTQ2[..., nope:qk_width] = rotate(q_BTHQ[..., nope:], rotary).transpose(1, 2)
        k_BHTQ2 = q_BTHQ.new_ones(batch, heads, length, qk_width + 2)
        k_BHTQ2[..., :nope] = kv_BTHX[..., :nope].transpose(1, 2)
        k_BHTQ2[..., nope:qk_width] = rotate(k_rope_BTR.unsqueeze(2), rotary).transpose(1, 2)
        v_BHTV2 = q_BTHQ.new_ones(batch, heads, length, v_width + 2)
        v_BHTV2[..., :v_width] = kv_BTHX[..., nope:].transpose(1, 2)
        q, k, v = q_BHTQ2.flatten(0, 1), k_BHTQ2.flatten(0, 1), v_BHTV2.flatten(0, 1)

        out_GTV = torch.empty_like(v[..., :v_width])
        lse_GT = torch.empty(batch * heads, length, dtype=torch.float32)
        scratch = _Scratch(q, min(BLOCK_ROWS, length) * length)
        for start, stop in _blocks(length):
            # Contiguous once: a product copies a slice each time it is given one.
            q_block, k_seen, v_seen = (x.contiguous() for x in (q[:, start:stop], k[:, :stop], v[:, :stop]))
            hidden = _Hidden(start, stop, mask, heads)
            logits = hidden.remove(scratch.product(q_block, k_seen.mT, scale))
            # The maximum of rounded logits is near enough to the true one; what it is rounded to cancels exactly.
            shift_GR = (logits.amax(-1).float() / scale).to(q.dtype)
            q_block[..., qk_width] = -shift_GR
            weights = hidden.remove(scratch.product(q_block, k_seen.mT, scale)).exp_()
            total_GR = weights.sum(-1, dtype=torch.float32)
            mixed = torch.bmm(weights, v_seen)[..., :v_width]
            out_GTV[:, start:stop] = mixed.float().div_(total_GR.unsqueeze(-1))
            lse_GT[:, start:stop] = total_GR.log_().add_(shift_GR.float(), alpha=scale)
        _write_pair(q[..., qk_width:], lse_GT / -scale)
        out_BTHV = out_GTV.unflatten(0, (batch, heads)).transpose(1, 2).contiguous()
        ctx.save_for_backward(q, k, v, out_GTV)
        ctx.rotary, ctx.scale, ctx.mask, ctx.rope = rotary, scale, mask, rope
        ctx.set_materialize_grads(False)
        lse_BHT = lse_GT.unflatten(0, (batch, heads))
        seen = q_BHTQ2[..., :qk_width], k_BHTQ2[..., :qk_width], lse_BHT
        ctx.mark_non_differentiable(*seen)
        return out_BTHV, *seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dout_BTHV = grads[0]
        if dout_BTHV is None:
            return (None,) * 6
        q, k, v, out_GTV = cast(tuple[Tensor, Tensor, Tensor, Tensor], ctx.saved_tensors)
        rotary, scale, mask, rope = ctx.rotary, ctx.scale, ctx.mask, ctx.rope
        batch, length, heads, v_width = dout_BTHV.shape
        qk_width = q.shape[-1] - 2
        nope = qk_width - rope
        do = q.new_empty(batch * heads, length, v_width + 2)
        do[..., :v_width].unflatten(0, (batch, heads)).copy_(dout_BTHV.transpose(1, 2))
        _write_pair(do[..., v_width:], -(do[..., :v_width].float() * out_GTV).sum(-1))

        dq = torch.empty_like(q[..., :qk_width])
        # Keys and values are summed over blocks in float32, and transposed, which makes their products faster. The
        # extra columns go along, since leaving them out would copy what the products read; they are dropped below.
        dk_GQT = torch.zeros(k.shape[0], k.shape[2], length, dtype=torch.float32)
        dv_GVT = torch.zeros(v.shape[0], v.shape[2], length, dtype=torch.float32)
        scratch, scratch_grad = (_Scratch(q, min(BLOCK_ROWS, length) * length) for _ in range(2))
        for start, stop in _blocks(length):
            q_block, k_seen, v_seen = (x.contiguous() for x in (q[:, start:stop], k[:, :stop], v[:, :stop]))
            do_block, hidden = do[:, start:stop].contiguous(), _Hidden(start, stop, mask, heads)
            weights = hidden.remove(scratch.product(q_block, k_seen.mT, scale)).exp_()
            dlogits = scratch_grad.product(do_block, v_seen.mT, 1.0).mul_(weights)
            dv_GVT[..., :stop] += torch.bmm(do_block.mT, weights)
            dk_GQT[..., :stop] += torch.bmm(q_block.mT, dlogits)
            dq[:, start:stop] = torch.bmm(dlogits, k_seen)[..., :qk_width]

        dq_BTHQ = dq.mul_(scale).unflatten(0, (batch, heads)).transpose(1, 2).contiguous()
        dq_BTHQ[..., nope:] = rotate(dq_BTHQ[..., nope:], rotary, inverse=True)
        dk_BTHQ = dk_GQT[:, :qk_width].mul_(scale).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
        dkv_BTHX = q.new_empty(batch, length, heads, nope + v_width)
        dkv_BTHX[..., :nope] = dk_BTHQ[..., :nope]
        dkv_BTHX[..., nope:] = dv_GVT[:, :v_width].unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
        dk_rope_BTR = rotate(dk_BTHQ[..., nope:].sum(2, keepdim=True), rotary, inverse=True).squeeze(2)
        return dq_BTHQ, dkv_BTHX, dk_rope_BTR.to(q.dtype), None, None, None


class _Scratch:
    """One buffer for the logits of a block, reused for every block of a call."""

    def __init__(self, like_GTQ: Tensor, numbers_per_group: int) -> None:
        self.buffer = like_GTQ.new_empty(like_GTQ.shape[0] * numbers_per_group)

    def product(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """scale · a @ b, written into the buffer."""
        shape = (a.shape[0], a.shape[1], b.shape[2])
        out = self.buffer[: shape[0] * shape[1] * shape[2]].view(shape)
        return out.baddbmm_(a, b, beta=0, alpha=scale)


class _Hidden:
    """What a block of query rows may not see: the future, and other documents."""

    def __init__(self, start: int, stop: int, mask: DocumentMask | None, heads: int) -> None:
        size = stop - start
        self.start, self.heads = start, heads
        self.elsewhere_B1RS: Tensor | None = None
        # Added, because adding runs on vector units with any broadcast and masked_fill_ does not.
        self.future_RR = torch.full((size, size), float("-inf"), dtype=torch.bfloat16).triu(1)
        if mask is not None:
            self.elsewhere_B1RS = torch.zeros((), dtype=torch.bfloat16).where(~mask.hidden(start, stop), float("-inf"))

    def remove(self, logits_GRS: Tensor) -> Tensor:
        """Set what is hidden to −∞, in place."""
        logits_GRS[..., self.start :] += self.future_RR
        if self.elsewhere_B1RS is not None:
            logits_GRS.unflatten(0, (-1, self.heads)).add_(self.elsewhere_B1RS)
        return logits_GRS


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_ROWS, length)) for start in range(0, length, BLOCK_ROWS)]


def _write_pair(columns: Tensor, value: Tensor) -> None:
    """Store a float32 value as the sum of two bfloat16 numbers in the two columns."""
    columns[..., 0] = value
    columns[..., 1] = value - columns[..., 0].float()
