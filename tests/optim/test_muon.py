import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from chogori.optim.config import NewtonSchulzConfig
from chogori.optim.layout import MatrixLayout
from chogori.optim.muon import Matrices, learning_rate_factor, matrices_of, muon_update

FLOAT32 = NewtonSchulzConfig(dtype="float32")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def update(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float = 0.02,
    nesterov: bool = True,
    newton_schulz: NewtonSchulzConfig = FLOAT32,
    stack_bytes: int | None = None,
    layout: MatrixLayout | None = None,
) -> None:
    matrices: list[Matrices] = []
    for weight, gradient, momentum in zip(weights, gradients, momenta, strict=True):
        matrices += matrices_of(weight, gradient, momentum, layout or MatrixLayout())
    muon_update(
        matrices,
        lr=lr,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=nesterov,
        newton_schulz=newton_schulz,
        stack_bytes=stack_bytes,
    )


def by_the_formula(
    weight: Tensor, gradient: Tensor, momentum: Tensor, lr: float, nesterov: bool
) -> tuple[Tensor, Tensor]:
    """One matrix, float64, as the report writes it."""
    momentum = 0.95 * momentum.double() + gradient.double()
    x = gradient.double() + 0.95 * momentum if nesterov else momentum
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    n, m = weight.shape
    return weight.double() - lr * (0.2 * math.sqrt(max(n, m)) * x + 0.1 * weight.double()), momentum


@pytest.mark.parametrize("nesterov", [True, False])
@given(
    shapes=st.lists(st.sampled_from([(6, 9), (9, 6), (4, 4), (1, 7)]), min_size=1, max_size=6),
    stack_bytes=st.sampled_from([1, 500, None]),
)
def test_every_matrix_of_a_stack_follows_the_formula(
    nesterov: bool, shapes: list[tuple[int, int]], stack_bytes: int | None
) -> None:
    weights = [normal(*shape, seed=index) for index, shape in enumerate(shapes)]
    momenta = [torch.zeros(shape) for shape in shapes]
    expected = [(weight, momentum.clone()) for weight, momentum in zip(weights, momenta, strict=True)]
    weights = [weight.clone() for weight in weights]
    for step in range(2):
        gradients = [normal(*shape, seed=100 * step + 50 + index) for index, shape in enumerate(shapes)]
        kept = [gradient.clone() for gradient in gradients]
        update(weights, gradients, momenta, nesterov=nesterov, stack_bytes=stack_bytes)
        expected = [
            by_the_formula(weight, gradient, momentum, 0.02, nesterov)
            for (weight, momentum), gradient in zip(expected, gradients, strict=True)
        ]
        assert all(torch.equal(left, right) for left, right in zip(gradients, kept, strict=True))
    for weight, momentum, (expected_weight, expected_momentum) in zip(weights, momenta, expected, strict=True):
        torch.testing.assert_close(momentum.double(), expected_momentum, rtol=1e-6, atol=1e-6)
        # Float32 rounding, grown by the slope 3.4445^5 < 500 of the iteration and lr·0.2·√m < 0.02.
        torch.testing.assert_close(weight.double(), expected_weight, rtol=0, atol=500 * 2**-22 * 0.02)


def test_experts_are_orthogonalised_one_by_one() -> None:
    weight, gradient = normal(5, 8, 12, seed=0), normal(5, 8, 12, seed=1)
    stacked, apart = weight.clone(), weight.clone()
    update([stacked], [gradient], [torch.zeros_like(weight)])
    update(list(apart.unbind()), list(gradient.unbind()), list(torch.zeros_like(weight).unbind()))
    torch.testing.assert_close(stacked, apart, rtol=0, atol=1e-6)


def test_splits_are_updated_as_if_they_were_parameters() -> None:
    weight, gradient = normal(9, 6, seed=0), normal(9, 6, seed=1)
    fused, apart = weight.clone(), weight.clone()
    update([fused], [gradient], [torch.zeros_like(weight)], layout=MatrixLayout(row_splits=(4, 5)))
    parts = [list(tensor.split((4, 5))) for tensor in (apart, gradient, torch.zeros_like(weight))]
    update(*parts)
    torch.testing.assert_close(fused, apart, rtol=0, atol=1e-6)
    columns, mirrored = weight.clone(), weight.mT.contiguous()
    update([columns], [gradient], [torch.zeros_like(weight)], layout=MatrixLayout(column_splits=(3, 3)))
    mirrored_gradient = gradient.mT.contiguous()
    update([mirrored], [mirrored_gradient], [torch.zeros(6, 9)], layout=MatrixLayout(row_splits=(3, 3)))
    torch.testing.assert_close(columns, mirrored.mT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (64, 64), (16, 128)])
def test_torch_muon_takes_the_same_steps(shape: tuple[int, int]) -> None:
    weight = normal(*shape, seed=0)
    theirs = nn.Parameter(weight.clone())
    optimizer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    ours = {dtype: weight.clone() for dtype in ("float32", "bfloat16")}
    momenta = {dtype: torch.zeros(shape) for dtype in ours}
    for step in range(3):
        gradient = normal(*shape, seed=step + 1)
        theirs.grad = gradient.clone()
        optimizer.step()
        for dtype, mine in ours.items():
            update(
                [mine],
                [gradient],
                [momenta[dtype]],
                newton_schulz=NewtonSchulzConfig(dtype=dtype),  # pyright: ignore[reportArgumentType]
            )
    moved = (theirs.detach() - weight).norm()
    for mine in ours.values():
        # Torch iterates in bfloat16, which leaves its update 1 to 3 % from the exact one (as it does ours).
        assert float((mine - theirs.detach()).norm() / moved) < 0.04


def test_the_update_has_the_root_mean_square_of_adamw() -> None:
    weight = torch.zeros(64, 256)
    update([weight], [normal(64, 256, seed=0)], [torch.zeros(64, 256)], lr=1.0)
    # An orthogonal n×m matrix has root mean square 1/√max(n, m); the quintic leaves singular values 0.7 to 1.1.
    assert 0.2 * 0.7 < float(weight.square().mean().sqrt()) < 0.2 * 1.15
    assert learning_rate_factor(64, 256) == pytest.approx(3.2)


def test_bfloat16_weights_and_gradients_have_float32_momenta() -> None:
    weight, gradient = normal(8, 12, seed=0).bfloat16(), normal(8, 12, seed=1).bfloat16()
    expected, _ = by_the_formula(weight.float(), gradient.float(), torch.zeros(8, 12), 0.02, True)
    momentum = torch.zeros(8, 12)
    update([weight], [gradient], [momentum])
    assert torch.equal(momentum, gradient.float())
    # One rounding to bfloat16, 2^-9 relative.
    torch.testing.assert_close(weight.double(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_learning_rate_of_zero_moves_no_weight(dtype: str) -> None:
    weight = normal(8, 12, seed=0)
    moved = weight.clone()
    config = NewtonSchulzConfig(dtype=dtype)  # pyright: ignore[reportArgumentType]
    update([moved], [normal(8, 12, seed=1)], [torch.zeros(8, 12)], lr=0.0, newton_schulz=config)
    assert torch.equal(moved, weight)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), capacity=st.integers(1, 12))
def test_a_chunk_never_exceeds_the_bound(sizes: list[int], capacity: int) -> None:
    from chogori.optim.muon import _chunks

    entries = [Matrices(*(torch.full((size, 1, 1), float(index)),) * 3) for index, size in enumerate(sizes)]
    chunks = list(_chunks(entries, capacity))
    assert all(sum(map(len, chunk)) <= capacity for chunk in chunks)
    order = [part.weight_Bnm[0].item() for chunk in chunks for part in chunk for _ in range(len(part))]
    assert order == [float(index) for index, size in enumerate(sizes) for _ in range(size)]
