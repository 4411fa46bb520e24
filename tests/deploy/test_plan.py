"""Which layouts fit, which is taken, and what is said where none is."""

import dataclasses
import re

import pytest

from chogori.deploy.checkpoint import find_checkpoint
from chogori.deploy.engine import Engine
from chogori.deploy.engines.ktransformers import KTRANSFORMERS, KTRANSFORMERS_GGUF
from chogori.deploy.engines.sglang import SGLANG
from chogori.deploy.engines.tensorrt_llm import TENSORRT_LLM
from chogori.deploy.engines.vllm import VLLM
from chogori.deploy.gpus import GIB, GPUS, find_gpu
from chogori.deploy.machine import Machine, usual_gpus_per_node
from chogori.deploy.plan import Plan, Request, make_plan
from chogori.errors import ConfigError, DeploymentError


def request(model: str = "kimi-k2", *, concurrency: int = 1, context: int | None = None) -> Request:
    checkpoint = find_checkpoint(model)
    return Request(
        checkpoint=checkpoint,
        context=context or checkpoint.sizes.max_position_embeddings,
        concurrency=concurrency,
    )


def machine(num_gpus: int, gpu: str) -> Machine:
    return Machine(gpu=find_gpu(gpu), num_gpus=num_gpus, gpus_per_node=usual_gpus_per_node(num_gpus))


def layouts(plan: Plan) -> dict[str, int | str]:
    """Sequences by layout, or why not."""
    return {option.words: option.obstacle or option.num_sequences for option in plan.options}


@pytest.mark.parametrize("gpu", ["h200", "h20"])
def test_the_official_minimum_is_16(gpu: str) -> None:
    """Kimi K2's guide: FP8 weights with 128k tokens need 16 H200 or H20, as TP16."""
    plan = make_plan(request(), machine(16, gpu), VLLM)
    assert plan.chosen.words == "TP16"
    assert plan.chosen.num_sequences >= 1
    with pytest.raises(DeploymentError, match=f"the least that would do: 16 × {gpu} on 2 nodes"):
        make_plan(request(), machine(8, gpu), VLLM)


def test_more_sequences_than_tensor_parallelism_holds_take_expert_parallelism() -> None:
    fewer = make_plan(request(concurrency=6), machine(16, "h200"), VLLM)
    more = make_plan(request(concurrency=64), machine(16, "h200"), VLLM)
    assert (fewer.chosen.words, more.chosen.words) == ("TP16", "DP16 + EP16")
    assert layouts(fewer) == layouts(more)
    assert more.chosen.num_sequences >= 64


def test_the_official_large_deployment() -> None:
    """4 prefill and 12 decode nodes, when it is asked for; never by itself."""
    plan = make_plan(request(), machine(128, "h200"), SGLANG)
    assert plan.chosen.words == "DP128 + EP128"
    apart = make_plan(request(), machine(128, "h200"), SGLANG, "pd")
    prefill, decode = apart.chosen.groups
    assert [(group.role, group.num_nodes, group.layout.words) for group in (prefill, decode)] == [
        ("prefill", 4, "DP32 + EP32"),
        ("decode", 12, "DP96 + EP96"),
    ]
    obstacle = layouts(plan)["tp"]
    assert isinstance(obstacle, str)
    assert "64 heads do not divide by 128" in obstacle


def test_halves_that_do_not_hold_the_model() -> None:
    plan = make_plan(request(), machine(16, "h200"), SGLANG)
    assert layouts(plan)["pd"] == "each half must hold the whole model, and does not"
    assert layouts(make_plan(request(), machine(8, "b200"), SGLANG))["pd"] == "it needs at least two nodes"


@pytest.mark.parametrize("concurrency", [1, 10])
def test_missing_memory_is_exact(concurrency: int) -> None:
    """GPUs that are larger by the missing memory hold the model; a MiB less and they do not."""
    small = machine(8, "h200")
    with pytest.raises(DeploymentError) as caught:
        make_plan(request(concurrency=concurrency), small, VLLM, "tp")
    found = re.search(r"([\d,.]+) GiB are missing on 8 GPUs \(TP8; 0 would fit\)", str(caught.value))
    assert found is not None
    missing_mib = float(found[1].replace(",", "")) * 1024 / 8
    # vLLM takes nine tenths of what is added, and one decimal place is shown.
    added = missing_mib / 0.9

    def grown(mib: float) -> Machine:
        gpu = dataclasses.replace(small.gpu, memory_mib=round(small.gpu.memory_mib + mib))
        return dataclasses.replace(small, gpu=gpu)

    assert make_plan(request(concurrency=concurrency), grown(added + 10), VLLM, "tp").chosen.words == "TP8"
    with pytest.raises(DeploymentError, match="GiB are missing"):
        make_plan(request(concurrency=concurrency), grown(added - 10), VLLM, "tp")


@pytest.mark.parametrize(
    ("model", "num_gpus", "gpu"), [("kimi-k2", 8, "h200"), ("kimi-k2", 8, "h100"), ("moonlight-16b-a3b", 1, "rtx4090")]
)
def test_the_least_machines_named_would_do(model: str, num_gpus: int, gpu: str) -> None:
    """Each is taken at its word; a node of the first kind less does not do."""
    with pytest.raises(DeploymentError) as caught:
        make_plan(request(model), machine(num_gpus, gpu), VLLM)
    named = re.findall(r"(\d+) × ([\w-]+) on", str(caught.value).split("the least that would do: ")[1])
    assert len(named) == 2
    for count, kind in named:
        make_plan(request(model), machine(int(count), kind), VLLM)
    count = int(named[0][0])
    with pytest.raises(DeploymentError):
        make_plan(request(model), machine(count - 8 if count > 8 else count // 2, gpu), VLLM)


def test_fp8_needs_units_or_vllm() -> None:
    assert make_plan(request(), machine(16, "a100-80"), VLLM).chosen.words == "PP2 × TP8"
    with pytest.raises(ConfigError, match="a100-80 cannot compute in FP8, and sglang needs that"):
        make_plan(request(), machine(16, "a100-80"), SGLANG)
    converted = dataclasses.replace(request(), checkpoint=find_checkpoint("kimi-k2", format="bfloat16"))
    assert make_plan(converted, machine(48, "a100-80"), SGLANG).chosen.num_sequences >= 1


def test_experts_on_processors() -> None:
    """KTransformers: one consumer GPU and 600 GB of memory for the quantized experts."""
    small = dataclasses.replace(machine(1, "rtx4090"), cpu_memory_bytes=640 * GIB)
    quantized = dataclasses.replace(request(context=8192), expert_bits=4.85)
    assert make_plan(quantized, small, KTRANSFORMERS_GGUF).chosen.num_sequences >= 1
    with pytest.raises(DeploymentError, match=r"345\.\d GiB of processor|GiB are missing of processor memory"):
        make_plan(request(context=8192), small, KTRANSFORMERS)
    with pytest.raises(ConfigError, match="cpu_memory_gib is not given"):
        make_plan(quantized, machine(1, "rtx4090"), KTRANSFORMERS_GGUF)


@pytest.mark.parametrize("engine", [VLLM, SGLANG, TENSORRT_LLM])
@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_every_gpu_is_sized_or_refused_in_words(engine: Engine, gpu: str) -> None:
    """Whatever the machine: a plan that keeps its promise, or a typed error."""
    for num_gpus in (1, 2, 8, 16, 64):
        asked = request("moonlight-16b-a3b", concurrency=4)
        refusal, plan = None, None
        try:
            plan = make_plan(asked, machine(num_gpus, gpu), engine)
        except (ConfigError, DeploymentError) as error:
            refusal = str(error)
        if plan is None:
            assert refusal is not None
            assert gpu in refusal
            continue
        memory = plan.chosen.serving.memory
        assert plan.chosen.num_sequences >= 4
        assert sum(item.bytes for item in memory.items) + memory.cache_room_bytes <= memory.memory_bytes


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ConfigError, match="context is 200000; kimi-k2 takes 1 to 131,072 tokens"):
        request(context=200_000)
    with pytest.raises(ConfigError, match="concurrency is 0; expected at least 1 sequence"):
        request(concurrency=0)
    with pytest.raises(ConfigError, match="layout is 'pd'; with vllm expected one of tp, dp-ep, pp"):
        make_plan(request(), machine(16, "h200"), VLLM, "pd")
    with pytest.raises(ConfigError, match="tensorrt-llm does not run on mi300x; expected a GPU of nvidia"):
        make_plan(request(), machine(16, "mi300x"), TENSORRT_LLM)
