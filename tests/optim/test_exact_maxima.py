import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chogori.optim import exact_maxima as module
from chogori.optim.exact_maxima import exact_maxima
from tests.optim.small_models import brute_force_logits


@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    key_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    tokens=st.integers(1, 40),
    size=st.floats(0.01, 30),
    masking=st.sampled_from(["causal", "documents", "boolean", "boolean per head", "none"]),
    with_lse=st.booleans(),
    chunk_bytes=st.sampled_from([1, 4 * 40 * 7, 32 * 2**20]),
    block_rows=st.sampled_from([1, 7, 128]),
)
def test_maxima_equal_those_of_all_logits(
    seed: int,
    batch: int,
    key_heads: int,
    group: int,
    tokens: int,
    size: float,
    masking: str,
    with_lse: bool,
    chunk_bytes: int,
    block_rows: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_heads = key_heads * group
    # Flat logits make every row a candidate, sharp ones leave few.
    q = torch.randn(batch, num_heads, tokens, 5, generator=generator) * size
    k = torch.randn(batch, key_heads, tokens, 5, generator=generator)
    heads = torch.randperm(num_heads, generator=generator)[: 1 + seed % num_heads]
    causal = masking in ("causal", "documents")
    documents = mask = visible = None
    if masking == "documents":
        documents = (torch.rand(batch, tokens, generator=generator) < 0.3).cumsum(1).int()
        visible = (documents[:, :, None] == documents[:, None, :])[:, None]
    elif masking.startswith("boolean"):
        shape = (batch, num_heads if "head" in masking else 1, tokens, tokens)
        visible = mask = torch.rand(shape, generator=generator) < 0.5
    logits = brute_force_logits(q, k, 0.7, visible, causal=causal)
    lse = logits.logsumexp(-1).float() if with_lse else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(module, "BLOCK_ROWS", block_rows)
        found = exact_maxima(q, k, 0.7, heads, lse_BHT=lse, documents_BT=documents, mask_BHTS=mask, causal=causal)
    # Float32 rounding of five products.
    torch.testing.assert_close(found.double(), logits.amax(dim=(0, 2, 3))[heads], rtol=2e-6, atol=2e-6 * size)


def test_sharp_heads_look_at_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    of_rows = module._Logits._of_rows

    def counted(self: module._Logits, rows_BhR: Tensor) -> Tensor:
        looked_at.append(rows_BhR.shape[-1])
        return of_rows(self, rows_BhR)

    monkeypatch.setattr(module._Logits, "_of_rows", counted)
    monkeypatch.setattr(module._Logits, "_of_all_rows", lambda self: pytest.fail("all rows were computed"))
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 2, 512, 16, generator=generator) * 6 for _ in range(2))
    logits = brute_force_logits(q, k, 0.25)
    found = exact_maxima(q, k, 0.25, torch.arange(2), lse_BHT=logits.logsumexp(-1).float())
    torch.testing.assert_close(found.double(), logits.amax(dim=(0, 2, 3)), rtol=1e-6, atol=0)
    # Logits up to 150: the largest row of each sequence, then the rows that come near the largest of both.
    assert sum(looked_at) < 10


def test_float64_stays_float64() -> None:
    q, k = torch.randn(1, 2, 6, 4, dtype=torch.float64), torch.randn(1, 1, 6, 4, dtype=torch.float64)
    found = exact_maxima(q, k, 0.3, torch.tensor([1]))
    torch.testing.assert_close(found, brute_force_logits(q, k, 0.3).amax(dim=(0, 2, 3))[1:], rtol=1e-14, atol=1e-14)
