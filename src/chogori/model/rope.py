"""Rotary position embedding in DeepSeek's interleaved layout, with YaRN.

Shapes: T tokens, R rotary width, C = R/2 pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chogori.model.config import K2Config, YarnConfig


@dataclass(frozen=True, kw_only=True)
class RotaryTable:
    """Cosine and sine of every position's angles, float32."""

    cos_TC: Tensor
    sin_TC: Tensor

    def at(self, start: int, length: int) -> RotaryTable:
        """The rows of `length` positions from `start`."""
        stop = start + length
        return RotaryTable(cos_TC=self.cos_TC[start:stop], sin_TC=self.sin_TC[start:stop])


def length_correction(factor: float, weight: float) -> float:
    """YaRN's attention temperature: 0.1 · weight · ln(factor) + 1 (arXiv 2309.00071, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def attention_scale(config: K2Config) -> float:
    """What queries·keys are multiplied by: 1/√d, with YaRN's correction squared when it applies to all dimensions."""
    scale = config.qk_head_dim**-0.5
    if config.yarn is not None and config.yarn.mscale_all_dim:
        scale *= length_correction(config.yarn.factor, config.yarn.mscale_all_dim) ** 2
    return scale


def rotary_frequencies(config: K2Config) -> Tensor:
    """Angle per position of each pair, float32 [C]."""
    width = config.qk_rope_head_dim
    exponent_C = torch.arange(0, width, 2, dtype=torch.float32) / width
    frequency_C = 1.0 / config.rope_theta**exponent_C
    if config.yarn is None:
        return frequency_C
    low, high = _yarn_ramp_ends(config.yarn, width, config.rope_theta)
    pair_C = torch.arange(width // 2, dtype=torch.float32)
    slow_C = ((pair_C - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency_C * (1 - slow_C) + frequency_C / config.yarn.factor * slow_C


def _yarn_ramp_ends(yarn: YarnConfig, width: int, theta: float) -> tuple[int, int]:
    """Pair indices between which YaRN goes from leaving a frequency alone to dividing it by the factor."""

    def pair_with(rotations: float) -> float:
        # The pair that turns `rotations` times over the original context.
        ratio = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(theta))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), width - 1)
    return low, high


def rotary_table(config: K2Config, length: int, device: torch.device) -> RotaryTable:
    """Cosines and sines for positions 0 to `length` − 1, including YaRN's magnitude correction."""
    position_T = torch.arange(length, dtype=torch.float32, device=device)
    angle_TC = torch.outer(position_T, rotary_frequencies(config).to(device))
    magnitude = 1.0
    if config.yarn is not None:
        yarn = config.yarn
        magnitude = length_correction(yarn.factor, yarn.mscale) / length_correction(yarn.factor, yarn.mscale_all_dim)
    return RotaryTable(cos_TC=angle_TC.cos() * magnitude, sin_TC=angle_TC.sin() * magnitude)


def rotate(x_TxR: Tensor, table: RotaryTable, *, inverse: bool = False) -> Tensor:
    """Turn the pairs (2i, 2i+1) of the last dimension; `x_TxR` is […, T, any, R], the result is in halves layout.

    The official weights interleave the two numbers of a pair; the result holds all first numbers, then all second
    ones. Queries and keys are permuted alike, so their products do not change. `inverse` maps a result's gradient back.
    """
    cos_T1C, sin_T1C = table.cos_TC.unsqueeze(-2), table.sin_TC.unsqueeze(-2)
    if inverse:
        first, second = x_TxR.float().chunk(2, dim=-1)
        pair = (first * cos_T1C + second * sin_T1C, second * cos_T1C - first * sin_T1C)
        return torch.stack(pair, dim=-1).flatten(-2).to(x_TxR.dtype)
    first, second = x_TxR.float().unflatten(-1, (-1, 2)).unbind(-1)
    pair = (first * cos_T1C - second * sin_T1C, second * cos_T1C + first * sin_T1C)
    return torch.cat(pair, dim=-1).to(x_TxR.dtype)
