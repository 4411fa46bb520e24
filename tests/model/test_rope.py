import math

import pytest
import torch

from chogori.model import K2Config, YarnConfig
from chogori.model.rope import attention_scale, rotary_frequencies, rotary_table, rotate

CPU = torch.device("cpu")


def test_products_depend_on_the_distance_only(small: K2Config) -> None:
    # R(a)q · R(b)k = q · R(b − a)k, since rotations of a plane commute.
    table = rotary_table(small, 100, CPU)
    q_R, k_R = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))

    def product(start: int) -> torch.Tensor:
        turned_q = rotate(q_R.view(1, 1, 8), table.at(start + 7, 1))
        return (turned_q * rotate(k_R.view(1, 1, 8), table.at(start, 1))).sum()

    products = [product(start) for start in (0, 1, 50, 92)]
    torch.testing.assert_close(torch.stack(products), products[0].expand(4), atol=1e-5, rtol=1e-5)


def test_pairs_are_neighbours_and_turn_by_their_frequency(small: K2Config) -> None:
    table = rotary_table(small, 3, CPU)
    for pair in range(4):
        unit_R = torch.zeros(3, 1, 8)
        unit_R[..., 2 * pair] = 1.0
        turned = rotate(unit_R, table)[2, 0]
        angle = 2 * 1000.0 ** (-2 * pair / 8)
        assert float(turned[pair]) == pytest.approx(math.cos(angle), abs=1e-6)
        assert float(turned[4 + pair]) == pytest.approx(math.sin(angle), abs=1e-6)


def test_the_inverse_undoes_a_rotation(small: K2Config) -> None:
    x_THR = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(1))
    table = rotary_table(small, 5, CPU)
    torch.testing.assert_close(rotate(rotate(x_THR, table), table, inverse=True), x_THR)


def test_yarn_divides_slow_pairs_and_leaves_fast_ones() -> None:
    config = K2Config.preset("kimi-k2")
    plain_C = rotary_frequencies(config.replace(yarn=None))
    ratio_C = rotary_frequencies(config) / plain_C
    # With beta 1 and 1 the change-over is where a pair turns once in 4,096 tokens: between pair 19 and 20 of 32.
    turn_once = 64 * math.log(4096 / (2 * math.pi)) / (2 * math.log(50_000))
    assert 19 < turn_once < 20
    torch.testing.assert_close(ratio_C[:20], torch.ones(20))
    torch.testing.assert_close(ratio_C[20:], torch.full((12,), 1 / 32))


def test_the_attention_scale_of_kimi_k2() -> None:
    # (0.1 · ln 32 + 1)² / √192, and no correction of cosine and sine: both mscales are 1.
    config = K2Config.preset("kimi-k2")
    assert attention_scale(config) == pytest.approx((0.1 * math.log(32) + 1) ** 2 / math.sqrt(192))
    assert float(rotary_table(config, 1, CPU).cos_TC.max()) == 1.0
    assert attention_scale(config.replace(yarn=None)) == pytest.approx(192**-0.5)


def test_mscale_alone_is_put_on_cosine_and_sine(small: K2Config) -> None:
    yarn = YarnConfig(factor=10.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.0)
    config = small.replace(yarn=yarn)
    assert float(rotary_table(config, 1, CPU).cos_TC[0, 0]) == pytest.approx(0.1 * math.log(10) + 1)
    assert attention_scale(config) == pytest.approx(20**-0.5)
