"""The block FP8 form of official weights: float8_e4m3fn numbers and one float32 scale per block of a matrix.

Source: DeepSeek-V3 report, §3.3; config.json `quantization_config.weight_block_size` (128 × 128 in Kimi K2). The scale
is stored as `<name>_scale_inv` and, despite that name, multiplies: weight = float8 · scale. Blocks at the right and
lower edge may be partial.

Shapes: O rows, I columns, P blocks of rows, Q blocks of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chogori.errors import WeightsError

SCALE_SUFFIX = "_scale_inv"
BLOCK = (128, 128)
_LARGEST = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True, kw_only=True)
class BlockQuantized:
    """One matrix in block FP8."""

    weight_OI: Tensor
    """float8_e4m3fn."""
    scale_PQ: Tensor
    """float32, one per block."""


def scale_shape(shape: tuple[int, ...], block: tuple[int, int] = BLOCK) -> tuple[int, int]:
    """Blocks of rows and of columns of a matrix; partial blocks count."""
    rows, columns = shape
    return -(-rows // block[0]), -(-columns // block[1])


def quantize_blocks(weight_OI: Tensor, block: tuple[int, int] = BLOCK) -> BlockQuantized:
    """Scale each block so that its largest magnitude is the largest float8 (448), and round."""
    num_row_blocks, num_column_blocks = scale_shape(tuple(weight_OI.shape), block)
    rows, columns = weight_OI.shape
    padding = (0, num_column_blocks * block[1] - columns, 0, num_row_blocks * block[0] - rows)
    padded = torch.nn.functional.pad(weight_OI.float(), padding)
    blocks = padded.reshape(num_row_blocks, block[0], num_column_blocks, block[1])
    largest_PQ = blocks.abs().amax(dim=(1, 3))
    # A block of zeros keeps scale 1: a scale of 0 would make 0/0 here.
    scale_PQ = torch.where(largest_PQ > 0, largest_PQ / _LARGEST, 1.0)
    scaled = (blocks / scale_PQ[:, None, :, None]).reshape(padded.shape)
    quantized_OI = scaled[:rows, :columns].clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return BlockQuantized(weight_OI=quantized_OI.contiguous(), scale_PQ=scale_PQ)


def dequantize_blocks(
    weight_OI: Tensor, scale_PQ: Tensor, dtype: torch.dtype, *, block: tuple[int, int] = BLOCK, name: str = "weight"
) -> Tensor:
    """The matrix in `dtype`; products are rounded once, from float32. `name` stands in error messages.

    Raises WeightsError when the scales are not float32 or not one per block.
    """
    expected = scale_shape(tuple(weight_OI.shape), block)
    if tuple(scale_PQ.shape) != expected or scale_PQ.dtype != torch.float32:
        raise WeightsError(
            f"{name}{SCALE_SUFFIX} is {scale_PQ.dtype} {list(scale_PQ.shape)}; expected torch.float32 "
            f"{list(expected)}: one scale per {block[0]} × {block[1]} block of {list(weight_OI.shape)}"
        )
    scale_PI = scale_PQ.repeat_interleave(block[1], dim=1)[:, : weight_OI.shape[1]]
    full_OI = weight_OI.float()
    for index in range(expected[0]):
        full_OI[index * block[0] : (index + 1) * block[0]].mul_(scale_PI[index])
    return full_OI.to(dtype)
