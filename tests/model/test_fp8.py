import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chogori.errors import WeightsError
from chogori.model.fp8 import dequantize_blocks, quantize_blocks, scale_shape

SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 20))
BLOCKS = st.tuples(st.integers(1, 8), st.integers(1, 8))


@given(shape=SHAPES, block=BLOCKS, seed=st.integers(0, 100))
def test_dequantised_equals_one_element_at_a_time(shape: tuple[int, int], block: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scale_PQ = torch.rand(scale_shape(shape, block), generator=generator)
    expected_OI = torch.empty(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            scale = scale_PQ[row // block[0], column // block[1]]
            expected_OI[row, column] = weight_OI[row, column].float() * scale
    assert torch.equal(dequantize_blocks(weight_OI, scale_PQ, torch.float32, block=block), expected_OI)
    # Rounded once, from float32.
    in_bfloat16 = dequantize_blocks(weight_OI, scale_PQ, torch.bfloat16, block=block)
    assert torch.equal(in_bfloat16, expected_OI.to(torch.bfloat16))


@given(shape=SHAPES, block=BLOCKS, seed=st.integers(0, 100), magnitude=st.sampled_from((1e-6, 1.0, 1e5)))
def test_quantising_loses_at_most_half_a_step(
    shape: tuple[int, int], block: tuple[int, int], seed: int, magnitude: float
) -> None:
    weight_OI = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * magnitude
    quantized = quantize_blocks(weight_OI, block)
    restored_OI = dequantize_blocks(quantized.weight_OI, quantized.scale_PQ, torch.float32, block=block)
    # e4m3 has three mantissa bits: half a step is 2⁻⁴ of a normal number, and 2⁻¹⁰ of the scale below 2⁻⁶.
    scale_OI = quantized.scale_PQ.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]
    allowed_OI = torch.maximum(weight_OI.abs() * 2**-4, scale_OI * 2**-10) * 1.0001
    assert bool(((restored_OI - weight_OI).abs() <= allowed_OI).all())
    largest = restored_OI.abs().max()
    torch.testing.assert_close(largest, weight_OI.abs().max(), rtol=1e-6, atol=0)


def test_a_block_of_zeros_stays_zero() -> None:
    quantized = quantize_blocks(torch.zeros(3, 5), (2, 2))
    assert torch.equal(
        dequantize_blocks(quantized.weight_OI, quantized.scale_PQ, torch.float32, block=(2, 2)), torch.zeros(3, 5)
    )


def test_edge_blocks_are_partial() -> None:
    assert scale_shape((129, 128)) == (2, 1)
    assert scale_shape((576, 7168)) == (5, 56)  # kv_a_proj_with_mqa of Kimi K2


@pytest.mark.parametrize("scale", [torch.ones(2, 2), torch.ones(3, 2, dtype=torch.bfloat16)])
def test_scales_that_do_not_fit_are_refused(scale: torch.Tensor) -> None:
    weight_OI = torch.zeros(5, 4).to(torch.float8_e4m3fn)
    with pytest.raises(WeightsError, match=r"q\.weight_scale_inv is .* expected torch.float32 \[3, 2\]: one scale per"):
        dequantize_blocks(weight_OI, scale, torch.float32, block=(2, 2), name="q.weight")
