"""How a model is divided among GPUs, and which divisions its sizes allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from chogori.deploy.checkpoint import FP8_BLOCK, Checkpoint
from chogori.deploy.weights import Split

LayoutKind = Literal["tp", "dp-ep", "pp", "cpu-experts"]
"""Tensor parallel; data-parallel attention with expert parallel; pipeline of tensor-parallel stages; tensor parallel
with the routed experts in the memory of the processors."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One division of a model. Every GPU is in one tensor group of one pipeline stage of one data-parallel rank."""

    kind: LayoutKind
    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def num_gpus(self) -> int:
        """GPUs that hold one copy of the routed experts."""
        return self.tensor * self.pipeline * self.data

    @property
    def words(self) -> str:
        """Such as "TP16" or "DP16 + EP16"."""
        if self.kind == "dp-ep":
            return f"DP{self.data} + EP{self.num_gpus}"
        if self.kind == "pp":
            return f"PP{self.pipeline} × TP{self.tensor}"
        return f"TP{self.tensor}, experts on the processors" if self.kind == "cpu-experts" else f"TP{self.tensor}"

    def divisor(self, split: Split) -> int:
        """Among how many GPUs of a stage tensors that can be divided along `split` are divided; 0 for none on GPUs."""
        if split == "whole":
            return 1
        if split == "experts":
            return {"dp-ep": self.num_gpus, "cpu-experts": 0}.get(self.kind, self.tensor)
        return self.tensor


def obstacles(checkpoint: Checkpoint, layout: Layout) -> Iterator[str]:
    """Why the sizes of the model forbid `layout`; nothing where they do not."""
    sizes = checkpoint.sizes
    if sizes.num_heads % layout.tensor:
        yield f"{sizes.num_heads} heads do not divide by {layout.tensor}"
    if layout.pipeline > sizes.num_layers:
        yield f"{sizes.num_layers} layers are fewer than {layout.pipeline} stages"
    if layout.kind == "dp-ep" and sizes.num_experts % layout.num_gpus:
        yield f"{sizes.num_experts} experts do not divide by {layout.num_gpus} GPUs"
    widths = {"dense feed-forward": sizes.dense_ffn_size} if sizes.num_dense_layers else {}
    if sizes.num_shared_experts:
        widths["shared experts"] = sizes.num_shared_experts * sizes.expert_ffn_size
    if layout.divisor("experts") == layout.tensor and layout.kind != "dp-ep":
        widths["experts"] = sizes.expert_ffn_size
    # A block shares one scale, so that a slice of an FP8 matrix must end where a block does.
    unit = FP8_BLOCK if checkpoint.format == "fp8" else 1
    uneven = [f"{name} ({width:,} wide)" for name, width in widths.items() if width % (layout.tensor * unit)]
    if layout.tensor > 1 and uneven:
        whole = f" of whole FP8 blocks of {unit}" if unit > 1 else ""
        yield f"{', '.join(uneven)} do not divide into {layout.tensor} equal parts{whole}"


def stages(num_layers: int, pipeline: int) -> list[int]:
    """Layers of each pipeline stage, as vLLM divides them: what is left over goes to the stages before the last.

    Source: vLLM, `vllm.distributed.utils.get_pp_indices`.
    """
    counts = [num_layers // pipeline] * pipeline
    for index in range(num_layers % pipeline):
        counts[-(index + 2)] += 1
    return counts
