import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chogori.optim.config import Coefficients, NewtonSchulzConfig
from chogori.optim.newton_schulz import Workspace, orthogonalize, quintics, segments, working_dtype

SETS: tuple[Coefficients, ...] = ("quintic", "polar_express")


def random_matrices(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apply_to_numbers(config: NewtonSchulzConfig, sigma: np.ndarray) -> np.ndarray:
    """What theory says the iteration does to a singular value."""
    for a, b, c in quintics(config):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def singular_values(x: Tensor) -> np.ndarray:
    return torch.linalg.svdvals(x.double()).numpy()


@pytest.mark.parametrize("coefficients", SETS)
@pytest.mark.parametrize("shape", [(3, 24, 40), (3, 40, 24), (3, 32, 32), (1, 16, 256)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_singular_value_goes_where_the_polynomials_send_it(
    coefficients: Coefficients, shape: tuple[int, ...], dtype: str
) -> None:
    config = NewtonSchulzConfig(coefficients=coefficients, dtype=dtype)  # pyright: ignore[reportArgumentType]
    x = random_matrices(*shape)
    before = singular_values(x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True))
    after = singular_values(orthogonalize(x, config))
    # The order of singular values may change: compare with the sorted image.
    expected = np.sort(apply_to_numbers(config, before), axis=-1)[..., ::-1]
    # Float32: rounding 2^-24 grows by the slope at 0, a^5 < 600. Bfloat16: 2^-9 in each of three products a step, and
    # the map is not monotonic, so that neighbours may swap; measured 0.04 at most.
    np.testing.assert_allclose(after, expected, atol=2e-4 if dtype == "float32" else 0.08)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("coefficients", "low", "high"), [("quintic", 0.68, 1.14), ("polar_express", 0.87, 1.13)])
def test_singular_values_end_in_the_band_of_the_coefficients(
    coefficients: Coefficients, low: float, high: float, dtype: str
) -> None:
    config = NewtonSchulzConfig(coefficients=coefficients, dtype=dtype)  # pyright: ignore[reportArgumentType]
    grid = apply_to_numbers(config, np.linspace(0.01, 1, 100_001))
    assert grid.min() > low
    assert grid.max() < high
    after = singular_values(orthogonalize(random_matrices(4, 64, 128), config))
    slack = 1e-3 if dtype == "float32" else 0.04
    assert after.min() > low - slack
    assert after.max() < high + slack


def test_more_polar_express_steps_reach_orthogonality() -> None:
    x = orthogonalize(
        random_matrices(48, 96), NewtonSchulzConfig(coefficients="polar_express", steps=9, dtype="float32")
    )
    torch.testing.assert_close(x @ x.mT, torch.eye(48), atol=1e-4, rtol=0)


def test_the_singular_vectors_stay() -> None:
    x = random_matrices(24, 40).double()
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    config = NewtonSchulzConfig(coefficients="polar_express", steps=9, dtype="float32")
    torch.testing.assert_close(orthogonalize(x, config), u @ vh, atol=1e-4, rtol=0)


def exact(x: Tensor, config: NewtonSchulzConfig) -> Tensor:
    """The iteration of the papers, step by step in float64."""
    x = x.double() / torch.linalg.vector_norm(x.double(), dim=(-2, -1), keepdim=True)
    for a, b, c in quintics(config):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def spectra(n: int, m: int) -> Tensor:
    """Three matrices of n×m: random, of rank n/16 in noise, and with singular values over four decades."""
    left, _, right = torch.linalg.svd(random_matrices(3, n, m).double(), full_matrices=False)
    index = torch.arange(n)
    values = torch.stack([torch.ones(n), torch.where(index < n // 16, 1.0, 1e-3), 10.0 ** (-4 * index / n)])
    return torch.cat([random_matrices(1, n, m), ((left * values.unsqueeze(-2)) @ right)[1:].float()])


@pytest.mark.parametrize("shape", [(128, 256), (128, 512)])
@pytest.mark.parametrize("steps", [1, 3, 5, 6])
def test_steps_that_share_a_gram_matrix_compute_the_same_polynomial(shape: tuple[int, int], steps: int) -> None:
    config = NewtonSchulzConfig(dtype="float32", steps=steps)
    assert len(segments(config, *shape)) == -(-steps // 3)
    x = spectra(*shape)
    # Float32 rounding, 2^-24 of the largest singular value, times the slope of at most 3.4445^6 < 1,700 at 0.
    for wide, result in ((x, orthogonalize(x, config)), (x, orthogonalize(x.mT, config).mT)):
        torch.testing.assert_close(result.double(), exact(wide, config), atol=1e-3, rtol=0)


def test_in_bfloat16_sharing_a_gram_matrix_costs_no_more_than_the_steps_themselves() -> None:
    config = NewtonSchulzConfig(dtype="bfloat16")
    x = spectra(128, 384)
    expected = exact(x, config)

    def error(result: Tensor) -> Tensor:
        return torch.linalg.vector_norm(result - expected, dim=(-2, -1)) / expected.norm(dim=(-2, -1))

    shared = error(orthogonalize(x, config))
    # Measured 0.03, 0.23 and 0.05: singular values below bfloat16's resolution are lost in either form, and of the
    # random matrix 0.01 in the other. All are far inside the quintic's own band of ±0.3.
    assert (shared < torch.tensor([0.05, 0.3, 0.1])).all(), shared


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (NewtonSchulzConfig(coefficients="polar_express"), (256, 768)),
        (NewtonSchulzConfig(), (256, 384)),
        (NewtonSchulzConfig(), (64, 256)),
    ],
)
def test_narrow_bands_small_and_nearly_square_matrices_go_step_by_step(
    config: NewtonSchulzConfig, shape: tuple[int, int]
) -> None:
    assert [len(segment) for segment in segments(config, *shape)] == [1] * config.steps
    assert segments(config, *shape) == segments(config, *reversed(shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(batch=st.integers(1, 7), n=st.integers(1, 40), m=st.integers(1, 40), coefficients=st.sampled_from(SETS))
def test_a_batch_equals_its_matrices_one_by_one(
    dtype: str, batch: int, n: int, m: int, coefficients: Coefficients
) -> None:
    config = NewtonSchulzConfig(coefficients=coefficients, dtype=dtype)  # pyright: ignore[reportArgumentType]
    x = random_matrices(batch, n, m, seed=batch + 10 * n + 1000 * m)
    together = orthogonalize(x, config)
    apart = torch.stack([orthogonalize(matrix, config) for matrix in x])
    # Kernels may sum in another order for another batch: float32 rounding times the slope 600, or a few bfloat16 steps.
    torch.testing.assert_close(together, apart, atol=1e-4 if dtype == "float32" else 0.06, rtol=0)


@given(n=st.integers(1, 24), m=st.integers(1, 24))
def test_tall_is_the_mirror_image_of_wide(n: int, m: int) -> None:
    config = NewtonSchulzConfig(dtype="float32")
    x = random_matrices(2, n, m, seed=n + 100 * m)
    torch.testing.assert_close(orthogonalize(x.mT, config).mT, orthogonalize(x, config), atol=1e-4, rtol=0)


def test_leading_dimensions_type_and_input_are_kept() -> None:
    x = random_matrices(2, 3, 8, 12).to(torch.bfloat16)
    original = x.clone()
    result = orthogonalize(x)
    assert result.shape == x.shape
    assert result.dtype is torch.bfloat16
    assert torch.equal(x, original)


def test_a_zero_matrix_stays_zero_and_a_vanishing_one_is_not_blown_up() -> None:
    config = NewtonSchulzConfig(dtype="float32")
    assert torch.equal(orthogonalize(torch.zeros(4, 6), config), torch.zeros(4, 6))
    tiny = 1e-12 * random_matrices(4, 6)
    # Divided by eps = 1e-7 instead of its norm, it stays so small that every step is linear.
    torch.testing.assert_close(orthogonalize(tiny, config), tiny / 1e-7 * 3.4445**5, rtol=1e-3, atol=0)


def test_the_working_type_follows_the_processor() -> None:
    cpu = torch.device("cpu")
    assert working_dtype(NewtonSchulzConfig(dtype="float32"), cpu) is torch.float32
    assert working_dtype(NewtonSchulzConfig(dtype="bfloat16"), cpu) is torch.bfloat16
    assert working_dtype(NewtonSchulzConfig(), torch.device("cuda")) is torch.bfloat16
    assert working_dtype(NewtonSchulzConfig(), torch.device("mps")) is torch.float32


def test_without_bfloat16_units_the_processor_works_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=supported: value, raising=False)
        assert working_dtype(NewtonSchulzConfig(), cpu) is expected
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert working_dtype(NewtonSchulzConfig(), cpu) is torch.float32


def test_scratch_memory_is_reused_and_grows() -> None:
    workspace = Workspace()
    device = torch.device("cpu")
    small = workspace.take("x", (2, 3), torch.float32, device)
    assert workspace.take("x", (3, 2), torch.float32, device).data_ptr() == small.data_ptr()
    assert workspace.take("y", (2, 3), torch.float32, device).data_ptr() != small.data_ptr()
    assert workspace.take("x", (50, 3), torch.float32, device).shape == (50, 3)
