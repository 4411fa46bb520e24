"""Packed products against PyTorch's own, and each row's result whatever rows stand beside it."""

import functools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear, silu

from chogori.engine import projections
from chogori.engine.projections import Projection, SwiGLU

DTYPES = (torch.float32, torch.bfloat16)
# As they occur: narrower and wider than a register, odd, and a head.
WIDTHS = ((64, 40), (32, 192), (33, 17), (256, 520))


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found: Tensor, exact: Tensor, *, roundings: int) -> None:
    """`found` is `exact`, save for a float32 sum of 256 products near 1 and so many roundings to its own type."""
    eps, sum_error = torch.finfo(found.dtype).eps, 256 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(
        found.double(), exact.double(), rtol=roundings * eps, atol=roundings * eps / 4 + sum_error
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "out"), WIDTHS)
def test_a_projection_is_the_linear_map_of_its_weight(width: int, out: int, dtype: torch.dtype) -> None:
    weight = random(out, width, dtype=dtype) / width**0.5
    projection = Projection(weight)
    assert projection.out_features == out
    for num_rows in (1, 2, 3, 4, 7, 8, 31):
        x, addend = random(num_rows, width, dtype=dtype, seed=1), random(num_rows, out, dtype=dtype, seed=2)
        exact = x.double() @ weight.double().T
        assert_near(projection(x), exact, roundings=1)
        assert_near(projection(x), linear(x, weight), roundings=2)
        # The product may be rounded by itself, and terms of up to 4 may cancel.
        assert_near(projection.plus(x, addend), exact + addend.double(), roundings=8)


def test_what_is_added_is_left_as_it_was() -> None:
    projection, addend = Projection(random(40, 64, dtype=torch.float32)), random(3, 40, dtype=torch.float32)
    kept = addend.clone()
    projection.plus(random(3, 64, dtype=torch.float32), addend)
    assert torch.equal(addend, kept)


def test_rows_may_be_slices_of_wider_ones() -> None:
    projection, wide = Projection(random(40, 64, dtype=torch.bfloat16)), random(5, 200, dtype=torch.bfloat16)
    assert torch.equal(projection(wide[:, 10:74]), projection(wide[:, 10:74].contiguous()))


def test_a_weight_that_changes_later_changes_nothing() -> None:
    weight = random(40, 64, dtype=torch.float32)
    projection, x = Projection(weight), random(3, 64, dtype=torch.float32)
    before = projection(x)
    weight.zero_()
    assert torch.equal(projection(x), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_is_its_formula(dtype: torch.dtype) -> None:
    gate, up, down = (random(*s, dtype=dtype, seed=i) / 8 for i, s in enumerate(((32, 64), (32, 64), (64, 32))))
    swiglu, x, addend = SwiGLU(gate, up, down), random(9, 64, dtype=dtype, seed=5), random(9, 64, dtype=dtype, seed=6)
    wide = x.double()
    exact = (silu(wide @ gate.double().T) * (wide @ up.double().T)) @ down.double().T
    # Gate, up, silu, product and result are rounded.
    assert_near(swiglu(x), exact, roundings=5)
    assert_near(swiglu.plus(x, addend), exact + addend.double(), roundings=8)


@dataclass(frozen=True, kw_only=True)
class Products:
    """A projection and a SwiGLU, rows for them, and what each row gives alone."""

    width: int
    out: int
    dtype: torch.dtype
    num_threads: int

    def of(self, rows: list[int]) -> tuple[Tensor, ...]:
        projection, swiglu, x, addend = self._parts
        return projection(x[rows]), projection.plus(x[rows], addend[rows]), swiglu(x[rows])

    @functools.cached_property
    def alone(self) -> list[tuple[Tensor, ...]]:
        return [self.of([row]) for row in range(70)]

    @functools.cached_property
    def _parts(self) -> tuple[Projection, SwiGLU, Tensor, Tensor]:
        width, out, dtype = self.width, self.out, self.dtype
        shapes = ((out, width), (out, width), (width, out))
        return (
            Projection(random(out, width, dtype=dtype) / width**0.5),
            SwiGLU(*(random(*shape, dtype=dtype) / width**0.5 for shape in shapes)),
            random(70, width, dtype=dtype, seed=1),
            random(70, out, dtype=dtype, seed=2),
        )


products = functools.cache(Products)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "out"), WIDTHS)
@given(chosen=st.lists(st.integers(0, 69), min_size=1, max_size=70))
@settings(max_examples=25)
def test_a_rows_result_does_not_depend_on_the_others(
    threads: int, width: int, out: int, dtype: torch.dtype, chosen: list[int]
) -> None:
    """Not by rounding either: this is what makes an answer independent of its batch."""
    given_ones = products(width=width, out=out, dtype=dtype, num_threads=threads)
    together = given_ones.of(chosen)
    for place, row in enumerate(chosen):
        for one, many in zip(given_ones.alone[row], together, strict=True):
            assert torch.equal(one[0], many[place])


def test_without_onednn_plain_products_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (torch.randn(*shape, generator=generator) * 0.1 for shape in ((24, 16), (24, 16), (16, 24)))
    x = torch.randn(5, 16, generator=generator)
    results: list[list[Tensor]] = []
    for has_onednn in (True, False):
        monkeypatch.setattr(projections, "HAS_ONEDNN", has_onednn)
        one, both = projections.Projection(gate), projections.SwiGLU(gate, up, down)
        results.append([one(x), one.sigmoid(x), both(x), both.plus(x, x)])
    for packed, plain in zip(*results, strict=True):
        torch.testing.assert_close(packed, plain, atol=1e-6, rtol=1e-5)
