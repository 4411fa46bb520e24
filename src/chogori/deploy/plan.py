"""Which layouts of a model fit some machines, how many sequences each serves, and which is to be taken.

The order of preference is that of Kimi K2's deployment guide: tensor parallelism while it is possible, then
data-parallel attention with expert parallelism, then a pipeline of nodes; prefill and decode apart only where it is
asked for. The first in this order that holds the asked sequences is recommended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from chogori.deploy.checkpoint import Checkpoint
from chogori.deploy.engine import Engine, LayoutName, Role
from chogori.deploy.gpus import GIB, GPUS, Gpu
from chogori.deploy.layout import Layout, obstacles
from chogori.deploy.machine import LARGEST_NODE, Machine
from chogori.deploy.memory import GpuMemory, expert_memory, gpu_memory
from chogori.errors import ConfigError, DeploymentError

MOST_NODES = 64
"""Where the search for a machine that fits ends."""
PREFILL_SHARE = 4
"""One node in four reads prompts: the 4 prefill and 12 decode nodes of Kimi K2's deployment guide."""
CPU_RESERVE_BYTES = 32 * GIB
"""Assumed for everything but the experts where processors compute them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be served."""

    checkpoint: Checkpoint
    context: int
    """Tokens of one sequence, prompt and answer together."""
    concurrency: int
    """Sequences of that length that must fit at one time."""
    expert_bits: float | None = None
    """Bits of one weight of a routed expert that processors compute; None for the checkpoint's own form."""

    def __post_init__(self) -> None:
        longest = self.checkpoint.sizes.max_position_embeddings
        if not 1 <= self.context <= longest:
            raise ConfigError(f"context is {self.context}; {self.checkpoint.name} takes 1 to {longest:,} tokens")
        if self.concurrency < 1:
            raise ConfigError(f"concurrency is {self.concurrency}; expected at least 1 sequence")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Nodes that hold the model once and do one work."""

    role: Role
    layout: Layout
    num_nodes: int
    memory: GpuMemory


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to serve a model on a machine."""

    name: LayoutName
    groups: tuple[Group, ...]
    """One, or prefill and decode; none where the way is closed."""
    obstacle: str | None
    """Why the model's sizes or the machine forbid it; None where they do not."""
    reasons: tuple[str, ...] = ()
    """What speaks for it and against it."""
    missing_cpu_bytes: int = 0
    """What the processors' memory lacks."""

    @property
    def words(self) -> str:
        """Such as "DP16 + EP16"."""
        if len(self.groups) == 2:
            prefill, decode = self.groups
            return f"prefill {prefill.layout.words}, decode {decode.layout.words}"
        return self.groups[0].layout.words if self.groups else self.name

    @property
    def serving(self) -> Group:
        """The group that holds the sequences being answered."""
        return self.groups[-1]

    @property
    def num_sequences(self) -> int:
        """Sequences of the asked context that fit at one time."""
        return min(self.serving.memory.num_sequences if self.missing_cpu_bytes == 0 else 0, *self._prefill_room())

    def _prefill_room(self) -> list[int]:
        # A prefill group must hold one prompt at least; more only queue.
        endless = 2**62
        return [endless if self.groups[0].memory.num_sequences else 0] if self.groups else [0]

    def missing_bytes(self, concurrency: int) -> int:
        """What all GPUs and processors together lack for `concurrency` sequences; 0 where it fits."""
        missing = self.missing_cpu_bytes
        for group in self.groups:
            needed = 1 if group.role == "prefill" else concurrency
            missing += group.memory.missing_bytes(needed) * group.layout.num_gpus
        return missing

    def fits(self, concurrency: int) -> bool:
        """Whether `concurrency` sequences can be served."""
        return self.obstacle is None and self.missing_bytes(concurrency) == 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The outcome: every option, and the one to take."""

    request: Request
    machine: Machine
    engine: Engine
    options: tuple[Option, ...]
    chosen: Option


def make_plan(request: Request, machine: Machine, engine: Engine, layout: LayoutName | None = None) -> Plan:
    """Size `request` on `machine` for `engine`, and choose; `layout` takes the choice away.

    Raises ConfigError for what the engine cannot do, and DeploymentError, which says how much is missing and what would
    fit, where nothing does.
    """
    _check_engine(request, machine, engine, layout)
    options = tuple(_option(name, request, machine, engine) for name in engine.layouts)
    eligible = [option for option in options if layout in (None, option.name)]
    fitting = [option for option in eligible if option.fits(request.concurrency)]
    if layout is None:
        fitting = [option for option in fitting if option.name != "pd"] or fitting
    if not fitting:
        raise DeploymentError(_why_not(request, machine, engine, eligible))
    return Plan(request=request, machine=machine, engine=engine, options=options, chosen=fitting[0])


def _check_engine(request: Request, machine: Machine, engine: Engine, layout: LayoutName | None) -> None:
    if layout is not None and layout not in engine.layouts:
        raise ConfigError(f"layout is {layout!r}; with {engine.name} expected one of {', '.join(engine.layouts)}")
    if machine.gpu.vendor not in engine.vendors:
        raise ConfigError(
            f"{engine.name} does not run on {machine.gpu.name}; expected a GPU of {', '.join(engine.vendors)}"
        )
    if request.checkpoint.format == "fp8" and not machine.gpu.fp8 and not engine.fp8_without_units:
        raise ConfigError(
            f"{machine.gpu.name} cannot compute in FP8, and {engine.name} needs that for FP8 weights; take --engine "
            "vllm, which expands them on the fly, or convert the weights and add --dtype bfloat16"
        )


def _option(name: LayoutName, request: Request, machine: Machine, engine: Engine) -> Option:
    if name == "pd":
        return _disaggregated(request, machine, engine)
    layout, obstacle = _layout(name, request.checkpoint, machine)
    if obstacle is not None:
        return Option(name=name, groups=(), obstacle=obstacle)
    group = _group("serve", name, layout, machine.num_nodes, request, machine, engine)
    missing = 0
    if name == "cpu-experts":
        if machine.cpu_memory_bytes is None:
            raise ConfigError("cpu_memory_gib is not given; ktransformers keeps the experts in the processors' memory")
        needed = expert_memory(request.checkpoint, request.expert_bits) + CPU_RESERVE_BYTES
        missing = max(0, needed - machine.cpu_memory_bytes)
    return Option(
        name=name, groups=(group,), obstacle=None, reasons=tuple(_reasons(name, machine)), missing_cpu_bytes=missing
    )


def _layout(name: LayoutName, checkpoint: Checkpoint, machine: Machine) -> tuple[Layout, str | None]:
    """The layout called `name` on all GPUs, and what forbids it."""
    num_gpus = machine.num_gpus
    if name == "dp-ep":
        layout = Layout(kind="dp-ep", data=num_gpus)
        obstacle = "it divides nothing on one GPU" if num_gpus == 1 else None
    elif name == "pp":
        layout = Layout(kind="pp", tensor=machine.gpus_per_node, pipeline=machine.num_nodes)
        obstacle = "it needs several nodes, one for each stage" if machine.num_nodes == 1 else None
    elif name == "cpu-experts":
        layout = Layout(kind="cpu-experts", tensor=num_gpus)
        obstacle = "it runs on one node" if machine.num_nodes > 1 else None
    else:
        layout, obstacle = Layout(kind="tp", tensor=num_gpus), None
    return layout, obstacle or "; ".join(obstacles(checkpoint, layout)) or None


def _group(
    role: Role, name: LayoutName, layout: Layout, num_nodes: int, request: Request, machine: Machine, engine: Engine
) -> Group:
    memory = gpu_memory(
        request.checkpoint, layout, machine.gpu.memory_bytes, engine.shares[name, role], request.context
    )
    return Group(role=role, layout=layout, num_nodes=num_nodes, memory=memory)


def _disaggregated(request: Request, machine: Machine, engine: Engine) -> Option:
    """Prefill on as few nodes as a quarter, or as hold the model; decode on the rest."""
    obstacle = "it needs at least two nodes"
    for num_prefill in range(max(1, machine.num_nodes // PREFILL_SHARE), machine.num_nodes):
        groups: list[Group] = []
        halves: tuple[tuple[Role, int], ...] = (
            ("prefill", num_prefill),
            ("decode", machine.num_nodes - num_prefill),
        )
        for role, num_nodes in halves:
            layout, problem = _layout("dp-ep", request.checkpoint, machine.with_nodes(num_nodes))
            if problem is not None:
                obstacle = f"{role} on {num_nodes} nodes: {problem}"
                break
            groups.append(_group(role, "pd", layout, num_nodes, request, machine, engine))
        else:
            prefill, decode = groups
            if prefill.memory.num_sequences and decode.memory.num_sequences:
                reasons = tuple(_reasons("pd", machine))
                return Option(name="pd", groups=(prefill, decode), obstacle=None, reasons=reasons)
            obstacle = "each half must hold the whole model, and does not"
    return Option(name="pd", groups=(), obstacle=obstacle)


def _reasons(name: LayoutName, machine: Machine) -> Iterator[str]:
    several = machine.num_nodes > 1
    if name == "tp":
        yield "shortest time per token for few sequences; the latent cache is a copy on every GPU"
        if several:
            yield "sums over the network twice a layer: needs InfiniBand or RoCE between the nodes"
        elif "PCIe" in machine.gpu.link and machine.num_gpus > 1:
            yield f"sums over {machine.gpu.link} twice a layer, {machine.gpu.link_gb_per_s} GB/s"
    elif name == "dp-ep":
        yield "most sequences: each GPU caches its own; every GPU needs the attention and shared weights whole"
        if several:
            yield "tokens travel to their experts between the nodes: needs InfiniBand or RoCE"
    elif name == "pp":
        yield "only activations cross between nodes; each token waits for every stage"
    elif name == "pd":
        yield "prompts never delay answers; both halves hold the model, and the cache travels over RDMA"
    else:
        yield "the GPU holds attention and cache, the processors compute the experts: few sequences, little hardware"


def _why_not(request: Request, machine: Machine, engine: Engine, options: list[Option]) -> str:
    checkpoint = request.checkpoint
    asked = (
        f"{checkpoint.name} in {checkpoint.format} with {request.concurrency:,} "
        f"{'sequence' if request.concurrency == 1 else 'sequences'} of {request.context:,} tokens does not fit "
        f"{machine.words} with {engine.name}"
    )
    possible = [option for option in options if option.obstacle is None]
    closed = "".join(f"; {option.name}: {option.obstacle}" for option in options if option.obstacle is not None)
    if not possible:
        return f"{asked}{closed}{_remedy(request, machine, engine, options)}"
    best = min(possible, key=lambda option: option.missing_bytes(request.concurrency))
    missing = best.missing_bytes(request.concurrency)
    where = "of processor memory" if best.missing_cpu_bytes else _gpus(machine.num_gpus)
    return (
        f"{asked}: {missing / GIB:,.1f} GiB are missing {where} ({best.words}; {best.num_sequences:,} would fit)"
        f"{closed}{_remedy(request, machine, engine, options)}"
    )


def _gpus(num_gpus: int) -> str:
    return "on the GPU" if num_gpus == 1 else f"on {num_gpus} GPUs"


def _remedy(request: Request, machine: Machine, engine: Engine, options: list[Option]) -> str:
    """The least machines that would do: of the same kind, and one node of another."""
    if engine.layouts == ("cpu-experts",):
        needed = expert_memory(request.checkpoint, request.expert_bits) + CPU_RESERVE_BYTES
        return f"; it takes one node with {needed / GIB:,.0f} GiB of processor memory"
    names: list[LayoutName] = [option.name for option in options]
    same = (grown for grown in _larger(machine) if _fits(request, grown, engine, names))
    others = [
        other
        for gpu in GPUS.values()
        if gpu != machine.gpu and gpu.vendor == machine.gpu.vendor
        if gpu.fp8 or request.checkpoint.format != "fp8"
        for other in _one_node(gpu)
        if _fits(request, other, engine, names)
    ]
    fitting = [grown.words for grown in (next(same, None),) if grown is not None]
    if others:
        fitting.append(min(others, key=lambda other: other.num_gpus * other.gpu.memory_bytes).words)
    if not fitting:
        return f"; nothing up to {MOST_NODES} nodes would do: lower --context or --concurrency"
    return f"; the least that would do: {', or '.join(fitting)}"


def _one_node(gpu: Gpu) -> Iterator[Machine]:
    num_gpus = 1
    while num_gpus <= LARGEST_NODE:
        yield Machine(gpu=gpu, num_gpus=num_gpus, gpus_per_node=num_gpus)
        num_gpus *= 2


def _larger(machine: Machine) -> Iterator[Machine]:
    """Fuller nodes first, then more of them."""
    for node in _one_node(machine.gpu):
        if machine.num_nodes == 1 and node.num_gpus > machine.num_gpus:
            yield dataclasses.replace(node, cpu_memory_bytes=machine.cpu_memory_bytes)
    for num_nodes in range(machine.num_nodes + 1, MOST_NODES + 1):
        yield machine.with_nodes(num_nodes)


def _fits(request: Request, machine: Machine, engine: Engine, names: list[LayoutName]) -> bool:
    return any(_option(name, request, machine, engine).fits(request.concurrency) for name in names)
