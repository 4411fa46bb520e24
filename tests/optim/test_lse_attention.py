import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from chogori.errors import ConfigError
from chogori.optim.lse_attention import lse_attention


@pytest.mark.parametrize("masking", ["causal", "boolean", "added", "none"])
@given(
    batch=st.integers(1, 2),
    key_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    tokens=st.integers(1, 9),
    width=st.integers(1, 12),
    value_width=st.integers(1, 12),
)
def test_values_gradients_and_log_sum_exp_equal_the_plain_formula(
    masking: str, batch: int, key_heads: int, group: int, tokens: int, width: int, value_width: int
) -> None:
    generator = torch.Generator().manual_seed(tokens + 10 * width)
    heads = key_heads * group
    q, k, v = (
        torch.randn(batch, count, tokens, size, generator=generator, dtype=torch.float64, requires_grad=True)
        for count, size in ((heads, width), (key_heads, width), (key_heads, value_width))
    )
    visible = torch.ones(tokens, tokens, dtype=torch.bool)
    if masking == "causal":
        visible = visible.tril()
    elif masking != "none":
        visible = torch.rand(batch, 1, tokens, tokens, generator=generator) < 0.7
        visible |= torch.eye(tokens, dtype=torch.bool)
    mask = None
    if masking == "boolean":
        mask = visible
    elif masking == "added":
        mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -math.inf)
    output = lse_attention(q, k, v, scale=0.3, mask_BHTS=mask, causal=masking == "causal")
    weight = torch.randn(output.values_BHTv.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((output.values_BHTv * weight).sum(), (q, k, v))

    repeated = [x.repeat_interleave(group, dim=1) for x in (k, v)]
    logits = (q @ repeated[0].mT * 0.3).masked_fill(~visible, -math.inf)
    values = logits.softmax(-1) @ repeated[1]
    expected = torch.autograd.grad((values * weight).sum(), (q, k, v))
    torch.testing.assert_close(output.values_BHTv, values)
    torch.testing.assert_close(output.lse_BHT, logits.logsumexp(-1))
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_torch_attention_to_the_last_bit_where_both_use_the_flash_kernel(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 4, 33, 16).to(dtype).requires_grad_() for _ in range(3))
    output = lse_attention(q, k, v, scale=0.25, causal=True)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25)
    assert torch.equal(output.values_BHTv, expected)
    assert output.lse_BHT.dtype is torch.float32
    for ours, theirs in zip(
        torch.autograd.grad(output.values_BHTv.sum(), (q, k, v)),
        torch.autograd.grad(expected.sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_a_device_without_such_a_kernel_is_refused() -> None:
    q = torch.zeros(1, 1, 2, 4, device="meta")
    with pytest.raises(ConfigError, match=r"no attention kernel on meta returns the log-sum-exp.*pass qk_clip=None"):
        lse_attention(q, q, q, scale=1.0)
