"""What GPUs hold: sums over all of them, and the latent cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.deploy.checkpoint import find_checkpoint
from chogori.deploy.gpus import GIB
from chogori.deploy.layout import Layout, obstacles, stages
from chogori.deploy.memory import GpuMemory, Share, expert_memory, gpu_memory
from chogori.deploy.weights import all_parts, total_bytes

SHARE = Share(fraction=0.9, of="all")
KIMI = find_checkpoint("kimi-k2")
MOONLIGHT = find_checkpoint("moonlight-16b-a3b")


def memory(layout: Layout, *, model: str = "kimi-k2", share: Share = SHARE, context: int = 8192) -> GpuMemory:
    return gpu_memory(find_checkpoint(model), layout, 141 * GIB, share, context)


def weights_of(plan: GpuMemory) -> dict[str, int]:
    return {item.kind: item.bytes for item in plan.items if item.kind not in ("workspace", "absorbed projections")}


def test_one_gpu_holds_the_whole_model() -> None:
    assert sum(weights_of(memory(Layout(kind="tp"))).values()) == total_bytes(KIMI)


@pytest.mark.parametrize("tensor", [2, 4, 8, 16])
def test_tensor_parallel_copies_only_what_has_no_heads_or_width(tensor: int) -> None:
    """All GPUs together hold the model, and what cannot be divided once more for each further GPU."""
    copied = sum(part.bytes for part in all_parts(KIMI) if part.split == "whole")
    held = sum(weights_of(memory(Layout(kind="tp", tensor=tensor))).values()) * tensor
    # A part that does not divide evenly is rounded up on every GPU: at most a byte for each of 600 parts.
    assert 0 <= held - (total_bytes(KIMI) + (tensor - 1) * copied) < 600 * tensor


@pytest.mark.parametrize("data", [2, 8, 16, 96])
def test_expert_parallel_copies_everything_but_the_experts(data: int) -> None:
    copied = sum(part.bytes for part in all_parts(KIMI) if part.split != "experts")
    held = sum(weights_of(memory(Layout(kind="dp-ep", data=data))).values()) * data
    assert held == total_bytes(KIMI) + (data - 1) * copied


def test_a_pipeline_copies_nothing() -> None:
    """With one stage a layer each GPU holds one block; the fullest has a sparse block and the head."""
    sparse = memory(Layout(kind="pp", pipeline=61))
    blocks = [part for part in all_parts(KIMI) if part.kind == "routed experts"]
    assert weights_of(sparse)["routed experts"] == blocks[0].bytes
    assert sparse.cache_bytes_per_token == 576 * 2


def test_stages_hold_every_layer_once_and_differ_by_one() -> None:
    assert stages(61, 2) == [31, 30]
    assert stages(61, 4) == [15, 15, 16, 15]
    for pipeline in range(1, 62):
        counts = stages(61, pipeline)
        assert sum(counts) == 61
        assert max(counts) - min(counts) <= 1


def test_the_latent_cache_of_kimi_k2() -> None:
    """576 numbers of 2 bytes in 61 layers; a copy on each GPU with tensor parallelism."""
    assert memory(Layout(kind="tp", tensor=16)).cache_bytes_per_token == 70_272
    assert memory(Layout(kind="tp", tensor=8)).cache_bytes_per_token == 70_272
    apart = memory(Layout(kind="dp-ep", data=16))
    assert apart.cache_bytes_per_token == 70_272
    assert apart.num_sequences == apart.cache_room_bytes // (8192 * 70_272) * 16
    assert memory(Layout(kind="pp", tensor=8, pipeline=2)).cache_bytes_per_token in (31 * 1152, 30 * 1152)


def test_contexts_fill_whole_pages() -> None:
    layout = Layout(kind="tp", tensor=16)
    assert memory(layout, context=1).sequence_bytes == memory(layout, context=64).sequence_bytes == 64 * 70_272
    assert memory(layout, context=65).sequence_bytes == 128 * 70_272


def test_what_each_engine_takes() -> None:
    """The three ways of sharing a GPU, by hand."""
    layout = Layout(kind="tp", tensor=16)
    within = memory(layout)
    weights, workspace = within.weight_bytes, within.items[-1].bytes
    size = 141 * GIB
    assert within.cache_room_bytes == int(0.9 * size) - weights - workspace
    static = memory(layout, share=Share(fraction=0.85, of="static"))
    assert static.cache_room_bytes == int(0.85 * size) - weights
    tight = memory(layout, share=Share(fraction=0.99, of="static"))
    assert tight.cache_room_bytes == size - workspace - weights
    free = memory(layout, share=Share(fraction=0.95, of="free"))
    assert free.cache_room_bytes == int(0.95 * (size - weights - workspace))


@given(
    concurrency=st.integers(1, 500),
    context=st.integers(1, 131_072),
    layout=st.sampled_from(
        [Layout(kind="tp", tensor=16), Layout(kind="dp-ep", data=16), Layout(kind="pp", tensor=8, pipeline=2)]
    ),
)
def test_missing_memory_is_exactly_what_makes_it_fit(concurrency: int, context: int, layout: Layout) -> None:
    """With that much more cache it fits, with a byte less it does not; and it is none exactly where it fits."""
    plan = memory(layout, context=context)
    missing = plan.missing_bytes(concurrency)
    assert (missing == 0) == (plan.num_sequences >= concurrency)
    if missing:
        room = plan.cache_room_bytes + missing
        on_each_rank = -(-concurrency // layout.data)
        assert room // plan.sequence_bytes >= on_each_rank
        assert (room - 1) // plan.sequence_bytes < on_each_rank


def test_fp8_blocks_end_tensor_parallelism_of_kimi_k2_at_16() -> None:
    """As its deployment guide says: with more than 16 GPUs, combine with pipeline parallelism."""
    allowed = [
        tensor for tensor in (1, 2, 4, 8, 16, 32, 64) if not list(obstacles(KIMI, Layout(kind="tp", tensor=tensor)))
    ]
    assert allowed == [1, 2, 4, 8, 16]
    (reason,) = obstacles(KIMI, Layout(kind="tp", tensor=32))
    assert reason == (
        "dense feed-forward (18,432 wide), shared experts (2,048 wide), experts (2,048 wide) do not divide into 32 "
        "equal parts of whole FP8 blocks of 128"
    )


def test_other_divisions_that_cannot_be() -> None:
    assert list(obstacles(MOONLIGHT, Layout(kind="tp", tensor=3))) == [
        "16 heads do not divide by 3",
        "dense feed-forward (11,264 wide), shared experts (2,816 wide), experts (1,408 wide) do not divide into 3 "
        "equal parts",
    ]
    assert list(obstacles(KIMI, Layout(kind="dp-ep", data=40))) == ["384 experts do not divide by 40 GPUs"]
    assert list(obstacles(MOONLIGHT, Layout(kind="pp", pipeline=28))) == ["27 layers are fewer than 28 stages"]


def test_experts_of_the_processors() -> None:
    """1.01 T weights at 4.85 bits are 615 GB: KTransformers asks for 600 GB of memory."""
    assert expert_memory(KIMI, 4.85) == pytest.approx(615e9, rel=0.01)
    assert expert_memory(KIMI, None) == sum(part.bytes for part in all_parts(KIMI) if part.split == "experts")
    assert "routed experts" not in weights_of(memory(Layout(kind="cpu-experts")))
