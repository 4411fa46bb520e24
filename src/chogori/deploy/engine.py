"""What sizing needs to know of an inference engine; how each is started stands in `engines`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from chogori.deploy.gpus import Vendor
from chogori.deploy.memory import Share

EngineName = Literal["vllm", "sglang", "ktransformers", "tensorrt-llm"]
LayoutName = Literal["tp", "dp-ep", "pp", "pd", "cpu-experts"]
"""The kinds of `Layout`, and "pd": prefill and decode on nodes of their own."""
Role = Literal["serve", "prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One inference engine."""

    name: EngineName
    layouts: tuple[LayoutName, ...]
    """What it can do, the first choice first."""
    shares: Mapping[tuple[LayoutName, Role], Share]
    """What it takes of a GPU, by layout and role."""
    vendors: frozenset[Vendor]
    """Whose GPUs it runs on."""
    fp8_without_units: bool
    """Whether it serves FP8 weights on GPUs that cannot compute in FP8, by expanding them on the fly."""
    program: str
    """What must be on PATH to start it."""
    module: str | None
    """Python module that `program` runs, where that is Python."""
    installation: str
    """Command that installs it."""
    health_path: str
    """Answers 200 once requests can be taken."""
    image: str
    """Container with it."""
