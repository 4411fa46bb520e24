"""The coefficient sequences of Newton–Schulz: Muon's constant quintic, and Polar Express. Loads no torch.

Polar Express (Amsel, Persson, Musco, Gower, arXiv 2505.16932) chooses at each step the odd quintic
p(x) = a·x + b·x³ + c·x⁵ that is nearest to 1, in the worst case, over the interval [lower, upper] in which the
singular values then lie. By the alternation theorem that polynomial takes the values 1−E, 1+E, 1−E, 1+E at the two
ends and its two stationary points; they are found by Remez exchange.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

Quintic = tuple[float, float, float]

MUON_QUINTIC: Quintic = (3.4445, -4.7750, 2.0315)
"""Keller Jordan's constants, used by Moonlight and Kimi K2: steep at 0, loose near 1."""

SAFETY = 1.01
"""Singular values may leave the interval by this factor in bfloat16 (the paper's choice)."""

_LOWER = 1e-3
_CUSHION = 0.02407327424182761
"""The paper's: below this ratio lower/upper, optimising for the smallest values would let the others collapse."""


def nearest_quintic(lower: float, upper: float) -> Quintic:
    """The odd quintic with the least maximal distance from 1 on [lower, upper]."""
    if lower / upper > 1 - 5e-6:
        # The interval is one point: the limit is the Newton–Schulz polynomial of order five, flat at `upper`.
        return 1.875 / upper, -1.25 / upper**3, 0.375 / upper**5
    nodes = np.array([lower, (3 * lower + upper) / 4, (lower + 3 * upper) / 4, upper])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    a = b = c = last_error = math.inf
    for _ in range(100):
        a, b, c, error = np.linalg.solve(np.stack([nodes, nodes**3, nodes**5, signs], axis=1), np.ones(4)).tolist()
        # p'(x) = a + 3b·x² + 5c·x⁴ = 0 is quadratic in x².
        root = math.sqrt(9 * b * b - 20 * a * c)
        nodes[1:3] = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        if abs(last_error - error) < 1e-15:
            break
        last_error = error
    return a, b, c


@lru_cache
def polar_express(steps: int, *, safety: float = SAFETY) -> tuple[Quintic, ...]:
    """The first `steps` polynomials for singular values in [0.001, 1], each with its safety factor but the last."""
    lower, upper = _LOWER, 1.0
    sequence: list[Quintic] = []
    for _ in range(steps):
        a, b, c = nearest_quintic(max(lower, _CUSHION * upper), upper)

        def value(x: float, a: float = a, b: float = b, c: float = c) -> float:
            return a * x + b * x**3 + c * x**5

        # The cushion moved the lower end, so p is re-centred to treat both ends of the true interval alike.
        centre = 2 / (value(lower) + value(upper)) if lower < _CUSHION * upper else 1.0
        a, b, c = a * centre, b * centre, c * centre
        lower, upper = value(lower) * centre, 2 - value(lower) * centre
        sequence.append((a, b, c))
    guarded = [(a / safety, b / safety**3, c / safety**5) for a, b, c in sequence[:-1]]
    return (*guarded, sequence[-1])
