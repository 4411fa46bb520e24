"""Kimi K2 on 16 × H200 against the commands of its official deployment guide (MoonshotAI/Kimi-K2,
docs/deploy_guidance.md): every flag of the guide is there with the guide's value, but for departures that are named."""

import shlex

import pytest

from chogori.deploy.fleet import Place
from tests.deploy.deployments import official, typed

VLLM_TP = """vllm serve $MODEL_PATH --port 8000 --served-model-name kimi-k2 --trust-remote-code
--tensor-parallel-size 16 --enable-auto-tool-choice --tool-call-parser kimi_k2"""
VLLM_DP_EP = """vllm serve $MODEL_PATH --port 8000 --served-model-name kimi-k2 --trust-remote-code
--data-parallel-size 16 --data-parallel-size-local 8 --data-parallel-address $MASTER_IP --data-parallel-rpc-port $PORT
--enable-expert-parallel --max-num-batched-tokens 8192 --max-num-seqs 256 --gpu-memory-utilization 0.85
--enable-auto-tool-choice --tool-call-parser kimi_k2"""
SGLANG_TP = """python -m sglang.launch_server --model-path $MODEL_PATH --tp-size 16 --dist-init-addr $MASTER_IP:50000
--nnodes 2 --node-rank 0 --trust-remote-code --tool-call-parser kimi_k2"""
SGLANG_PREFILL = """python -m sglang.launch_server --model-path $MODEL_PATH --trust-remote-code
--disaggregation-mode prefill --dist-init-addr $PREFILL_NODE0:5757 --tp-size 32 --dp-size 32 --enable-dp-attention
--host $LOCAL_IP --moe-a2a-backend deepep --moe-dense-tp-size 1 --enable-dp-lm-head --disable-shared-experts-fusion
--watchdog-timeout 1000000 --enable-two-batch-overlap --disaggregation-ib-device $IB_DEVICE
--chunked-prefill-size 131072 --mem-fraction-static 0.85 --deepep-mode normal --max-running-requests 1024 --nnodes 4
--node-rank $RANK --tool-call-parser kimi_k2"""
SGLANG_DECODE = """python -m sglang.launch_server --model-path $MODEL_PATH --trust-remote-code
--disaggregation-mode decode --dist-init-addr $DECODE_NODE0:5757 --tp-size 96 --dp-size 96 --enable-dp-attention
--host $LOCAL_IP --moe-a2a-backend deepep --moe-dense-tp-size 1 --enable-dp-lm-head --disable-shared-experts-fusion
--watchdog-timeout 1000000 --enable-two-batch-overlap --disaggregation-ib-device $IB_DEVICE --deepep-mode low_latency
--mem-fraction-static 0.8 --nnodes 12 --node-rank $RANK --tool-call-parser kimi_k2"""
TENSORRT_LLM = """mpirun -np 16 -H $HOSTS --allow-run-as-root trtllm-llmapi-launch trtllm-serve serve $MODEL
--backend pytorch --tp_size 16 --ep_size 8 --kv_cache_free_gpu_memory_fraction 0.95 --trust_remote_code
--max_batch_size 128 --max_num_tokens 4096 --extra_llm_api_options $FILE --port 8000"""
KTRANSFORMERS = """python ktransformers/server/main.py --model_path /path/to/K2 --gguf_path /path/to/K2
--cache_lens 30000
--optimize_config_path
ktransformers/optimize/optimize_rules/DeepSeek-V3-Chat-fp8-linear-ggml-experts-serve-amx.yaml"""


def options(words: list[str] | tuple[str, ...]) -> dict[str, list[str]]:
    """What follows each flag, and what precedes the first one as ""."""
    found: dict[str, list[str]] = {"": []}
    flag = ""
    for word in words:
        if word.startswith("-") and word != "-m":
            flag = word
            found[flag] = []
        else:
            found[flag].append(word)
    return found


def command(arguments: tuple[str, ...], rank: int, group: int = 0) -> dict[str, list[str]]:
    deployment = typed("kimi-k2", *arguments)
    made = deployment.fleet.groups[group].command(Place(rank=rank))
    assert made is not None
    return options(made.words)


def assert_follows(guide: str, made: dict[str, list[str]]) -> set[str]:
    """Every option of the guide with its value, where the guide gives one; returns what is added to them."""
    expected = options(shlex.split(guide))
    for flag, values in expected.items():
        assert flag in made, f"{flag} of the guide is missing"
        for value, ours in zip(values, made[flag], strict=True):
            # What the reader of the guide fills in is filled in here, up to a port that follows it.
            if value.startswith("$"):
                assert ours.endswith(value.partition(":")[2])
            else:
                assert ours == value, flag
    return set(made) - set(expected)


def test_vllm_tensor_parallel() -> None:
    """The nodes meet through vLLM itself, not through a Ray cluster that is started by hand."""
    arguments = ("--gpus", "16", "--gpu", "h200")
    added = {"--host", "--nnodes", "--node-rank", "--master-addr", "--master-port", "--gpu-memory-utilization"}
    assert assert_follows(VLLM_TP, command(arguments, 0)) == added
    worker = command(arguments, 1)
    assert assert_follows(VLLM_TP, worker) == {*added, "--headless"}
    assert (worker["--node-rank"], worker["--nnodes"], worker["--gpu-memory-utilization"]) == (["1"], ["2"], ["0.9"])


def test_vllm_data_and_expert_parallel() -> None:
    arguments = ("--gpus", "16", "--gpu", "h200", "--concurrency", "64")
    assert assert_follows(VLLM_DP_EP, command(arguments, 0)) == {"--host"}
    worker = command(arguments, 1)
    assert assert_follows(VLLM_DP_EP, worker) == {"--host", "--headless", "--data-parallel-start-rank"}
    assert worker["--data-parallel-start-rank"] == ["8"]


def test_sglang_tensor_parallel() -> None:
    made = command(("--gpus", "16", "--gpu", "h200", "--engine", "sglang"), 0)
    assert assert_follows(SGLANG_TP, made) == {"--served-model-name", "--host", "--port", "--mem-fraction-static"}


@pytest.mark.parametrize(("group", "guide"), [(0, SGLANG_PREFILL), (1, SGLANG_DECODE)])
def test_sglang_prefill_and_decode_apart(group: int, guide: str) -> None:
    """4 and 12 nodes. What the guide's example has for its benchmark is left out: the module's docstring names it."""
    arguments = ("--gpus", "128", "--gpu", "h200", "--engine", "sglang", "--layout", "pd", "--ib-device", "mlx5_0")
    added = {"--served-model-name", "--port"} | ({"--max-running-requests"} if group else set())
    made = command(arguments, 0, group)
    assert assert_follows(guide, made) == added
    assert made["--disaggregation-ib-device"] == ["mlx5_0"]


def test_tensorrt_llm() -> None:
    deployment = official("--engine", "tensorrt-llm")
    made = deployment.fleet.groups[0].command(Place(rank=0))
    assert made is not None
    assert assert_follows(TENSORRT_LLM, options(made.words)) == {"--tool_parser", "--host"}
    assert "enable_attention_dp: true" in made.preparation
    assert "batch_sizes: [1, 2, 4, 8, 16, 32, 64, 128]" in made.preparation
    assert deployment.fleet.groups[0].command(Place(rank=1)) is None, "mpirun starts the other node"


def test_ktransformers_over_gguf() -> None:
    arguments = ["--engine", "ktransformers", "--gguf", "/path/to/K2", "--gpus", "1", "--gpu", "rtx4090"]
    deployment = typed("kimi-k2", *arguments, "--cpu-memory-gib", "700", "--context", "30000")
    made = deployment.fleet.groups[0].command(Place(rank=0))
    assert made is not None
    added = {"--model_name", "--host", "--port", "--max_batch_size", "--backend_type"}
    assert assert_follows(KTRANSFORMERS, options(made.words)) == added


def test_ktransformers_over_the_official_weights() -> None:
    arguments = ["--engine", "ktransformers", "--gpus", "2", "--gpu", "rtx4090", "--context", "8192"]
    deployment = typed("kimi-k2", *arguments, "--cpu-memory-gib", "1152", "--weights", "/models/kimi-k2")
    made = deployment.fleet.groups[0].command(Place(rank=0))
    assert made is not None
    found = options(made.words)
    assert found[""] == ["python", "-m", "sglang.launch_server"]
    assert found["--kt-weight-path"] == found["--model-path"] == ["/models/kimi-k2"]
    assert (found["--kt-method"], found["--tp-size"], found["--max-total-tokens"]) == (["FP8"], ["2"], ["8192"])
