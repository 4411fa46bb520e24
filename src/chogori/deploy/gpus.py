"""The GPUs that a deployment can be sized for, with the figures that decide what fits and where each comes from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from chogori.errors import ConfigError

MIB = 2**20
GIB = 2**30

Vendor = Literal["nvidia", "amd"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """What is typed, such as h200."""
    vendor: Vendor
    memory_mib: int
    """Memory of one GPU in MiB."""
    link_gb_per_s: int
    """Bandwidth of one GPU to the others of its node in GB/s, both directions together."""
    link: str
    """What that link is."""
    fp8: bool
    """Whether its matrix units compute in FP8 (e4m3)."""
    product_names: tuple[str, ...]
    """What its driver calls it, as beginnings."""
    source: str
    """Where the figures come from."""

    @property
    def memory_bytes(self) -> int:
        """Memory of one GPU in bytes."""
        return self.memory_mib * MIB


_NVIDIA = "memory.total of nvidia-smi; link and FP8: NVIDIA's data sheet"
_AMD = "AMD's data sheet"


def _nvidia(name: str, memory_mib: int, link_gb_per_s: int, link: str, *product_names: str, fp8: bool = True) -> Gpu:
    return Gpu(
        name=name,
        vendor="nvidia",
        memory_mib=memory_mib,
        link_gb_per_s=link_gb_per_s,
        link=link,
        fp8=fp8,
        product_names=product_names,
        source=_NVIDIA,
    )


def _amd(name: str, memory_mib: int, link_gb_per_s: int, *product_names: str) -> Gpu:
    return Gpu(
        name=name,
        vendor="amd",
        memory_mib=memory_mib,
        link_gb_per_s=link_gb_per_s,
        link="Infinity Fabric",
        fp8=True,
        product_names=product_names,
        source=_AMD,
    )


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _nvidia("a100-40", 40_960, 600, "NVLink 3", "NVIDIA A100-SXM4-40GB", fp8=False),
        _nvidia("a100-80", 81_920, 600, "NVLink 3", "NVIDIA A100-SXM4-80GB", fp8=False),
        _nvidia("h100", 81_559, 900, "NVLink 4", "NVIDIA H100 80GB HBM3"),
        _nvidia("h20", 97_871, 900, "NVLink 4", "NVIDIA H20"),
        _nvidia("h200", 143_771, 900, "NVLink 4", "NVIDIA H200"),
        _nvidia("b200", 183_359, 1_800, "NVLink 5", "NVIDIA B200"),
        _nvidia("l40s", 46_068, 64, "PCIe 4", "NVIDIA L40S"),
        _nvidia("rtx4090", 24_564, 64, "PCIe 4", "NVIDIA GeForce RTX 4090"),
        _nvidia("rtx5090", 32_607, 128, "PCIe 5", "NVIDIA GeForce RTX 5090"),
        _nvidia("rtx-pro-6000", 97_887, 128, "PCIe 5", "NVIDIA RTX PRO 6000 Blackwell"),
        _amd("mi300x", 196_608, 896, "AMD Instinct MI300X"),
        _amd("mi325x", 262_144, 896, "AMD Instinct MI325X"),
        _amd("mi355x", 294_912, 1_075, "AMD Instinct MI355X"),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, in any case. Raises ConfigError with the nearest name where there is none."""
    found = GPUS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"gpu is {name!r}; expected one of {', '.join(GPUS)}{hint}")
    return found
