"""KTransformers: attention and cache on the GPUs, routed experts on the processors of the same node.

Two forms. With the weights as they are, SGLang's server with the kernels of kt-kernel (`sglang-kt`), which is how the
project serves now. With a GGUF folder, the server of Kimi K2's deployment guide, with its rules for AMX; the project
has moved that server to its archive, so it needs a release that still has it.
"""

from __future__ import annotations

import dataclasses

from chogori.deploy.command import Command
from chogori.deploy.engine import Engine
from chogori.deploy.engines.sglang import serve_words
from chogori.deploy.fleet import Fleet, NodeGroup, Place
from chogori.deploy.memory import Share
from chogori.deploy.plan import Plan

GGUF_BITS = 4.85
"""Bits of one weight in Q4_K_M, the quantization that KTransformers publishes Kimi K2 in (llama.cpp's figure)."""
AMX_RULES = "ktransformers/optimize/optimize_rules/DeepSeek-V3-Chat-fp8-linear-ggml-experts-serve-amx.yaml"
CHUNK_TOKENS = 4_096

KTRANSFORMERS = Engine(
    name="ktransformers",
    layouts=("cpu-experts",),
    shares={("cpu-experts", "serve"): Share(fraction=0.94, of="static", prefill_tokens=CHUNK_TOKENS)},
    vendors=frozenset({"nvidia"}),
    fp8_without_units=False,
    program="python",
    module="sglang",
    installation="pip install sglang-kt kt-kernel",
    health_path="/health",
    image="approachingai/ktransformers:latest",
)
KTRANSFORMERS_GGUF = dataclasses.replace(
    KTRANSFORMERS,
    fp8_without_units=True,
    module="ktransformers",
    installation="pip install ktransformers, from a source release before its server was archived",
    health_path="/v1/models",
)


def ktransformers_fleet(plan: Plan, port: int, gguf: str | None) -> Fleet:
    """The one process of `plan`, with experts from the checkpoint, or from the folder `gguf`."""

    def command(place: Place) -> Command:
        words = _kernel_words(plan, place, port) if gguf is None else _gguf_words(plan, place, port, gguf)
        return Command(words=tuple(words))

    return Fleet(groups=(NodeGroup(role="serve", num_nodes=1, command=command, port=port),), port=port)


def _kernel_words(plan: Plan, place: Place, port: int) -> list[str]:
    checkpoint, group = plan.request.checkpoint, plan.chosen.serving
    words = serve_words(plan, group, place, port)
    words += ["--tp-size", str(group.layout.tensor), "--kt-weight-path", checkpoint.location]
    words += ["--kt-method", "FP8" if checkpoint.format == "fp8" else "BF16", "--kt-num-gpu-experts", "0"]
    words += ["--chunked-prefill-size", str(CHUNK_TOKENS), "--max-total-tokens", str(_cache_tokens(plan))]
    return [*words, "--attention-backend", "flashinfer", "--disable-shared-experts-fusion"]


def _gguf_words(plan: Plan, place: Place, port: int, gguf: str) -> list[str]:
    # As the guide has it, configuration and tokenizer lie beside the GGUF files.
    words = ["python", "ktransformers/server/main.py", "--model_path", gguf, "--gguf_path", gguf]
    words += ["--model_name", plan.request.checkpoint.name, "--host", place.host, "--port", str(port)]
    words += ["--cache_lens", str(_cache_tokens(plan)), "--optimize_config_path", AMX_RULES]
    return [*words, "--max_batch_size", str(plan.request.concurrency), "--backend_type", "balance_serve"]


def _cache_tokens(plan: Plan) -> int:
    return plan.request.context * plan.request.concurrency
