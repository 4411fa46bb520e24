import numpy as np
import pytest

from chogori.optim.quintics import nearest_quintic, polar_express

# Algorithm 1 of arXiv 2505.16932 (published Python code), before its safety factor.
PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def test_the_published_coefficients_follow_from_the_definition() -> None:
    # The last two intervals are so short that the linear systems lose half of float64's 16 digits.
    np.testing.assert_allclose(polar_express(8, safety=1.0)[:6], PUBLISHED[:6], rtol=1e-9)
    np.testing.assert_allclose(polar_express(8, safety=1.0)[6:], PUBLISHED[6:], rtol=1e-6)


def test_the_safety_factor_stretches_all_polynomials_but_the_last() -> None:
    x = np.linspace(0, 1, 11)
    for (a, b, c), (sa, sb, sc) in zip(polar_express(5, safety=1.0)[:-1], polar_express(5)[:-1], strict=True):
        np.testing.assert_allclose(
            sa * x + sb * x**3 + sc * x**5, a * x / 1.01 + b * (x / 1.01) ** 3 + c * (x / 1.01) ** 5
        )
    assert polar_express(5)[-1] == polar_express(5, safety=1.0)[-1]


@pytest.mark.parametrize(("lower", "upper"), [(0.05, 1.0), (0.3, 1.7), (0.9, 1.1)])
def test_no_other_quintic_is_nearer_to_one(lower: float, upper: float) -> None:
    x = np.linspace(lower, upper, 20_001)
    a, b, c = nearest_quintic(lower, upper)

    def distance(a: float, b: float, c: float) -> float:
        return float(np.abs(a * x + b * x**3 + c * x**5 - 1).max())

    best = distance(a, b, c)
    # Alternation: four extrema of equal size and alternating sign prove optimality (Chebyshev).
    error = a * x + b * x**3 + c * x**5 - 1
    extreme = np.abs(error) > best * (1 - 1e-6)
    signs = np.sign(error[extreme])
    assert 1 + int((np.diff(signs) != 0).sum()) == 4
    for change in np.random.default_rng(0).normal(scale=1e-2, size=(50, 3)):
        assert distance(a + change[0], b + change[1], c + change[2]) > best
