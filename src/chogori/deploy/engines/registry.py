"""The engines by name, and the fleet of a plan."""

from __future__ import annotations

from chogori.deploy.engine import Engine, EngineName
from chogori.deploy.engines.ktransformers import KTRANSFORMERS, KTRANSFORMERS_GGUF, ktransformers_fleet
from chogori.deploy.engines.sglang import SGLANG, sglang_fleet
from chogori.deploy.engines.tensorrt_llm import TENSORRT_LLM, tensorrt_llm_fleet
from chogori.deploy.engines.vllm import VLLM, vllm_fleet
from chogori.deploy.fleet import Fleet
from chogori.deploy.plan import Plan


def find_engine(name: EngineName, gguf: str | None) -> Engine:
    """What is known of the engine called `name`; `gguf` is the folder of KTransformers' GGUF files, if there is one."""
    if name == "ktransformers":
        return KTRANSFORMERS if gguf is None else KTRANSFORMERS_GGUF
    return {"vllm": VLLM, "sglang": SGLANG, "tensorrt-llm": TENSORRT_LLM}[name]


def make_fleet(plan: Plan, port: int, *, gguf: str | None, ib_device: str | None) -> Fleet:
    """The processes of `plan`, with the API at `port`. Raises ConfigError where the engine needs to be told more."""
    name = plan.engine.name
    if name == "vllm":
        return vllm_fleet(plan, port)
    if name == "sglang":
        return sglang_fleet(plan, port, ib_device)
    if name == "tensorrt-llm":
        return tensorrt_llm_fleet(plan, port)
    return ktransformers_fleet(plan, port, gguf)
