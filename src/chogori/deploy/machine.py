"""The machines of a deployment: how many GPUs of which kind on how many nodes, as told or as detected."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from dataclasses import dataclass

from chogori.deploy.gpus import GPUS, Gpu
from chogori.errors import ConfigError, DeploymentError

LARGEST_NODE = 8
"""GPUs of the usual HGX and Instinct platforms."""
DETECTION_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs of one kind on equal nodes."""

    gpu: Gpu
    num_gpus: int
    """All nodes together."""
    gpus_per_node: int
    cpu_memory_bytes: int | None = None
    """Memory of the processors of one node; None where it is not known."""

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ConfigError(f"gpus is {self.num_gpus}; expected at least 1")
        if self.gpus_per_node < 1:
            raise ConfigError(f"gpus_per_node is {self.gpus_per_node}; expected at least 1")
        if self.num_gpus % self.gpus_per_node:
            raise ConfigError(
                f"gpus is {self.num_gpus} with {self.gpus_per_node} on each node; expected a multiple of "
                f"{self.gpus_per_node}, or another --gpus-per-node"
            )

    @property
    def num_nodes(self) -> int:
        """Nodes that the GPUs are on."""
        return self.num_gpus // self.gpus_per_node

    @property
    def words(self) -> str:
        """Such as "16 × h200 on 2 nodes"."""
        nodes = "one node" if self.num_nodes == 1 else f"{self.num_nodes} nodes"
        return f"{self.num_gpus} × {self.gpu.name} on {nodes}"

    def with_nodes(self, num_nodes: int) -> Machine:
        """As many nodes of the same kind."""
        return dataclasses.replace(self, num_gpus=num_nodes * self.gpus_per_node)


def usual_gpus_per_node(num_gpus: int) -> int:
    """Up to 8 GPUs are taken for one node; more for nodes of 8."""
    return min(num_gpus, LARGEST_NODE)


def detect_machine() -> Machine:
    """This machine's GPUs, asked of nvidia-smi, and its memory.

    A product that is not in the table is taken at the memory that its driver reports, with FP8 from its compute
    capability.

    Raises DeploymentError where there is no nvidia-smi, it fails, or the GPUs are of several kinds.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise DeploymentError(
            "gpus is detect, and there is no nvidia-smi here; name the GPUs instead, such as --gpus 8 --gpu h200"
        )
    query = [program, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=DETECTION_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeploymentError(
            f"{' '.join(query)} did not answer: {error}; name the GPUs with --gpus and --gpu"
        ) from error
    if result.returncode:
        said = (result.stderr or result.stdout).strip()
        raise DeploymentError(f"{' '.join(query)} failed: {said}; name the GPUs with --gpus and --gpu")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return read_detected(result.stdout, memory)


def read_detected(listing: str, cpu_memory_bytes: int) -> Machine:
    """The machine that lines of "name, memory in MiB, compute capability" describe. Raises DeploymentError."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.strip()]
    if not rows:
        raise DeploymentError("nvidia-smi lists no GPU; name the GPUs with --gpus and --gpu")
    if any(len(row) != 3 for row in rows):
        raise DeploymentError(f"nvidia-smi answered {listing!r}; expected name, memory and compute capability a line")
    if len({tuple(row) for row in rows}) > 1:
        names = ", ".join(sorted({row[0] for row in rows}))
        raise DeploymentError(
            f"this machine has GPUs of several kinds ({names}); expected one kind: name it with --gpu"
        )
    name, memory_mib, capability = rows[0]
    try:
        gpu = _known(name) or Gpu(
            name=name.removeprefix("NVIDIA ").lower().replace(" ", "-"),
            vendor="nvidia",
            memory_mib=int(memory_mib),
            link_gb_per_s=64,
            link="PCIe 4, assumed",
            fp8=float(capability) >= 8.9,
            product_names=(name,),
            source="nvidia-smi of this machine",
        )
    except ValueError as error:
        raise DeploymentError(
            f"nvidia-smi answered {rows[0]}; expected memory in MiB and a compute capability"
        ) from error
    return Machine(gpu=gpu, num_gpus=len(rows), gpus_per_node=len(rows), cpu_memory_bytes=cpu_memory_bytes)


def _known(product: str) -> Gpu | None:
    """The longest matching beginning wins, so that an H200 is not taken for an H20."""
    matches = [
        (len(beginning), gpu)
        for gpu in GPUS.values()
        for beginning in gpu.product_names
        if product == beginning or product.startswith(beginning + " ")
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None
