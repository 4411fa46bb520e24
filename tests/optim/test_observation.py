import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chogori.errors import ConfigError, NonFiniteError
from chogori.optim.observation import MARGIN, AttentionLogitMonitor
from tests.optim.small_models import brute_force_logits


def visible_of(documents_BT: Tensor) -> Tensor:
    return (documents_BT[:, :, None] == documents_BT[:, None, :])[:, None]


@given(
    seed=st.integers(0, 10**6),
    layers=st.integers(1, 3),
    micro_batches=st.integers(1, 3),
    batch=st.integers(1, 3),
    key_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    tokens=st.integers(1, 12),
    width=st.integers(1, 6),
    masking=st.sampled_from(["causal", "documents", "boolean"]),
    threshold=st.floats(0.3, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_screening_misses_no_head_and_its_maxima_are_exact(
    seed: int,
    layers: int,
    micro_batches: int,
    batch: int,
    key_heads: int,
    group: int,
    tokens: int,
    width: int,
    masking: str,
    threshold: float,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads = key_heads * group
    monitor = AttentionLogitMonitor(threshold=threshold)
    observers = [monitor.observer(f"layer {index}", heads) for index in range(layers)]
    truth = torch.full((layers, heads), -math.inf, dtype=torch.float64)
    for _ in range(micro_batches):
        for index, observer in enumerate(observers):
            # Heads of very different size, so that some are hot and some are not.
            size = 4 * torch.rand(1, heads, 1, 1, generator=generator) ** 3 * threshold**0.5
            q = (torch.randn(batch, heads, tokens, width, generator=generator) * size).to(dtype)
            k = (torch.randn(batch, key_heads, tokens, width, generator=generator) * 2).to(dtype)
            documents = mask = None
            visible = None
            if masking == "documents":
                starts = torch.rand(batch, tokens, generator=generator) < 0.3
                documents = starts.cumsum(1).int()
                visible = visible_of(documents)
            elif masking == "boolean":
                visible = mask = torch.rand(batch, 1, tokens, tokens, generator=generator) < 0.5
            logits = brute_force_logits(q, k, 0.7, visible, causal=masking != "boolean")
            truth[index] = torch.maximum(truth[index], logits.amax(dim=(0, 2, 3)))
            # A row without any visible key: kernels differ, PyTorch's CPU kernel returns 0.
            lse = logits.logsumexp(-1).float().nan_to_num(neginf=0.0)
            observer(q, k, lse, 0.7, documents, mask_BHTS=mask, causal=masking != "boolean")
    for result, true_H in zip(monitor.collect(), truth, strict=True):
        assert bool((result.bound_H >= true_H - 1e-5 * true_H.abs()).all())
        # Exact: a maximum near or above the threshold is the true one, to float32 rounding of at most six products.
        high = true_H >= threshold * (1 - MARGIN)
        torch.testing.assert_close(result.maximum_H[high], true_H[high], rtol=2e-6, atol=1e-6)
        # Complete: any other head is reported below the threshold.
        assert bool((result.top_H[~high] < threshold).all())


def test_a_cool_head_is_never_recomputed_and_a_flush_lets_go_of_queries_and_keys() -> None:
    monitor = AttentionLogitMonitor(threshold=100.0)
    observer = monitor.observer("attention", 2)
    q, k = torch.full((1, 2, 3, 4), float("nan")), torch.full((1, 2, 3, 4), float("nan"))
    # NaN queries would give NaN maxima if they were looked at.
    observer(q, k, torch.full((1, 2, 3), 99.0), 1.0)
    (result,) = monitor.collect()
    assert result.maximum_H.tolist() == [-math.inf, -math.inf]
    assert result.bound_H.tolist() == result.top_H.tolist() == [99.0, 99.0]
    assert observer.pending is None


def test_only_hot_heads_are_recomputed_per_micro_batch() -> None:
    monitor = AttentionLogitMonitor(threshold=10.0)
    observer = monitor.observer("attention", 2)
    for sizes in ((1.0, 5.0), (6.0, 1.0)):
        q = torch.tensor(sizes)[None, :, None, None].expand(1, 2, 3, 4)
        k = torch.ones(1, 2, 3, 4)
        observer(q, k, brute_force_logits(q, k, 1.0).logsumexp(-1).float(), 1.0)
    (result,) = monitor.collect()
    assert result.maximum_H.tolist() == [24.0, 20.0]
    assert monitor.collect()[0].bound_H.tolist() == [-math.inf, -math.inf]


def test_kernels_that_return_maxima_need_no_recomputation() -> None:
    monitor = AttentionLogitMonitor(threshold=10.0)
    observer = monitor.observer("attention", 2)
    observer.report_maximum(torch.tensor([[[3.0, 12.0], [1.0, 2.0]]]))
    observer.report_maximum(torch.tensor([[[4.0, 5.0], [7.0, 2.0]]]))
    (result,) = monitor.collect()
    assert result.top_H.tolist() == result.maximum_H.tolist() == [12.0, 7.0]


@pytest.mark.parametrize(("threshold", "exact"), [(None, True), (1.0, False)])
def test_without_exact_maxima_nothing_is_kept(threshold: float | None, exact: bool) -> None:
    monitor = AttentionLogitMonitor(threshold=threshold, exact=exact)
    observer = monitor.observer("attention", 1)
    observer(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([[[5.0, 6.0]]]), 1.0)
    assert observer.pending is not None
    assert observer.pending.q_BHTd is None
    (result,) = monitor.collect()
    assert result.top_H.tolist() == [6.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_named(value: float) -> None:
    monitor = AttentionLogitMonitor()
    observer = monitor.observer("layers.3.self_attn", 3)
    lse = torch.zeros(1, 3, 2)
    lse[0, 1, 1] = value
    observer(torch.zeros(1, 3, 2, 4), torch.zeros(1, 3, 2, 4), lse, 1.0)
    with pytest.raises(NonFiniteError, match=r"logit of layers\.3\.self_attn, head 1, is NaN or infinite"):
        monitor.collect()


def test_an_impossible_threshold_is_refused() -> None:
    with pytest.raises(ConfigError, match="threshold of attention logits is -1; expected above 0"):
        AttentionLogitMonitor(threshold=-1)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_under_activation_checkpointing_is_not_a_new_micro_batch(reentrant: bool) -> None:
    monitor = AttentionLogitMonitor(threshold=1.0)
    observer = monitor.observer("attention", 1)
    flushes = 0
    flush = monitor.flush

    def counted() -> None:
        nonlocal flushes
        flushes += 1
        flush()

    monitor.flush = counted

    def layer(x: Tensor) -> Tensor:
        observer(x, x, brute_force_logits(x, x, 1.0).logsumexp(-1).float(), 1.0)
        return x.sin()

    x = torch.ones(1, 1, 3, 4, requires_grad=True)
    result = checkpoint(layer, x, use_reentrant=reentrant)
    assert isinstance(result, Tensor)
    result.sum().backward()
    assert flushes == 0
    assert monitor.collect()[0].maximum_H.tolist() == [4.0]


def test_observation_stands_outside_compiled_graphs() -> None:
    monitor = AttentionLogitMonitor(threshold=1.0)
    observer = monitor.observer("attention", 1)

    def layer(x: Tensor) -> Tensor:
        y = x * 2
        observer(y, y, (y @ y.mT).logsumexp(-1), 1.0, causal=False)
        return y + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's own, of no concern here
        compiled = torch.compile(layer, backend="eager")
        for _ in range(3):
            torch.testing.assert_close(compiled(torch.ones(1, 1, 3, 4)), torch.full((1, 1, 3, 4), 3.0))
    assert monitor.collect()[0].maximum_H.tolist() == [16.0]
