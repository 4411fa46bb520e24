"""Attention that also returns the log-sum-exp of its logits, from the flash kernels that PyTorch ships.

Shape letters: B sequences, H query heads, G key heads (G divides H), T query positions, S key positions, d head width
of queries and keys, v head width of values.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from chogori.errors import ConfigError


class AttentionOutput(NamedTuple):
    """`values_BHTv` in the type of the queries; `lse_BHT` the natural log-sum-exp of the scaled, masked logits."""

    values_BHTv: Tensor
    lse_BHT: Tensor


def lse_attention(
    q_BHTd: Tensor,
    k_BGSd: Tensor,
    v_BGSv: Tensor,
    *,
    scale: float,
    mask_BHTS: Tensor | None = None,
    causal: bool = False,
) -> AttentionOutput:
    """Scaled dot-product attention with its log-sum-exp; differentiable in queries, keys and values.

    `mask_BHTS` is boolean (True: visible) or added to the logits, and excludes `causal`. Widths d and v may differ: the
    narrower is padded with zeros, which changes neither logits nor values and keeps the flash kernel applicable.

    Raises ConfigError on a device without such a kernel.
    """
    kind = q_BHTd.device.type
    if kind not in ("cpu", "cuda"):
        raise ConfigError(
            f"no attention kernel on {kind} returns the log-sum-exp that QK-Clip screens; pass qk_clip=None, or train "
            "on a CPU or CUDA device"
        )
    if mask_BHTS is not None and mask_BHTS.dtype is torch.bool:
        bias = torch.zeros(mask_BHTS.shape, dtype=q_BHTd.dtype, device=q_BHTd.device)
        mask_BHTS = bias.masked_fill_(~mask_BHTS, float("-inf"))
    width = v_BGSv.shape[-1]
    head_width = max(q_BHTd.shape[-1], width)
    if kind == "cuda":
        head_width = -(-head_width // 8) * 8  # the kernels load eight numbers at a time
    q_BHTd, k_BGSd, v_BGSv = (
        F.pad(x, (0, head_width - x.shape[-1])) if x.shape[-1] < head_width else x for x in (q_BHTd, k_BGSd, v_BGSv)
    )
    if kind == "cpu":
        output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BHTd, k_BGSd, v_BGSv, 0.0, causal, attn_mask=mask_BHTS, scale=scale
        )
    else:
        repeats = q_BHTd.shape[1] // k_BGSd.shape[1]
        if repeats > 1:
            k_BGSd, v_BGSv = (x.repeat_interleave(repeats, dim=1) for x in (k_BGSd, v_BGSv))
        if mask_BHTS is None and q_BHTd.dtype in (torch.float16, torch.bfloat16) and head_width <= 256:
            output = torch.ops.aten._scaled_dot_product_flash_attention(
                q_BHTd, k_BGSd, v_BGSv, 0.0, causal, False, scale=scale
            )
        else:
            if mask_BHTS is not None:
                mask_BHTS = _aligned(mask_BHTS).expand(*q_BHTd.shape[:3], k_BGSd.shape[2])
            output = torch.ops.aten._scaled_dot_product_efficient_attention(
                q_BHTd, k_BGSd, v_BGSv, mask_BHTS, True, 0.0, causal, scale=scale
            )
    values_BHTv, lse_BHT = cast("tuple[Tensor, Tensor]", tuple(output[:2]))
    # The memory-efficient kernel pads the rows of its log-sum-exp.
    return AttentionOutput(values_BHTv[..., :width], lse_BHT[..., : q_BHTd.shape[2]])


def _aligned(mask_BHTS: Tensor) -> Tensor:
    """The mask with rows that start at multiples of eight numbers, as the memory-efficient kernel demands."""
    keys = mask_BHTS.shape[-1]
    return F.pad(mask_BHTS, (0, -keys % 8))[..., :keys]
