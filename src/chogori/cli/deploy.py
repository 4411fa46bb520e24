"""`chogori deploy MODEL`: size a model for GPUs, write an engine's exact commands and files, or start it here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from chogori.deploy.checkpoint import find_checkpoint
from chogori.deploy.engine import EngineName
from chogori.deploy.fleet import Access
from chogori.deploy.gpus import GIB, GPUS, find_gpu
from chogori.deploy.machine import Machine, detect_machine, usual_gpus_per_node
from chogori.errors import ConfigError

if TYPE_CHECKING:
    from chogori.deploy.formats.files import Deployment, File

Format = Literal["shell", "systemd", "kubernetes", "slurm"]


@dataclass(frozen=True, kw_only=True)
class DeployArguments:
    """What `chogori deploy` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Preset such as kimi-k2 or moonlight-16b-a3b, or a Hugging Face folder."""
    gpus: int | Literal["detect"] = "detect"
    """Number of GPUs, all nodes together; detect asks nvidia-smi of this machine."""
    gpu: str | None = None
    """Kind of the GPUs, such as h200, h20, b200, mi300x or rtx4090."""
    gpus_per_node: int | None = None
    """GPUs of one node; None for up to 8."""
    cpu_memory_gib: int | None = None
    """Memory of one node's processors in GiB, where KTransformers keeps the experts."""
    engine: EngineName = "vllm"
    """What serves the model."""
    layout: Literal["auto", "tp", "dp-ep", "pp", "pd"] = "auto"
    """Tensor parallel; data-parallel attention with expert parallel; pipeline over nodes; prefill and decode on nodes
    of their own (SGLang). auto takes the simplest that holds the sequences."""
    context: int | None = None
    """Tokens of one sequence, prompt and answer together; None for the model's longest."""
    concurrency: int = 1
    """Sequences of that length that must fit at one time; more, if they are shorter."""
    dtype: Literal["auto", "fp8", "bfloat16"] = "auto"
    """Number type that the weights will be converted to beforehand; auto for the one they have."""
    weights: str | None = None
    """Folder or Hugging Face name that the engine loads; None for the preset's official one, or the folder."""
    gguf: Path | None = None
    """Folder of Q4_K_M GGUF files for KTransformers' processors; None for the weights as they are."""
    format: Format = "shell"
    """What to write: scripts, systemd units with scripts, Kubernetes objects, or a Slurm job."""
    out: Path | None = None
    """Folder for the files; None prints them."""
    hosts: tuple[str, ...] = ()
    """Addresses of the nodes, the first first; without them the scripts ask for what they need."""
    ib_device: str | None = None
    """RDMA devices of a node, such as mlx5_0,mlx5_1, that the cache travels over in layout pd."""
    port: int = 8080
    """Port of the gateway."""
    engine_port: int = 8000
    """Port of the engine, on this machine's loopback address wherever that is enough."""
    access: Access | None = None
    """Whom the gateway answers: those with a key, or everybody who reaches it. None for keys in what is written, and
    everybody on this machine with --launch."""
    image: str | None = None
    """Container of the engine for Kubernetes; None for the engine's own."""
    gateway_image: str = "chogori:latest"
    """Container of the gateway for Kubernetes."""
    launch: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start the engine here, wait until it answers, and put the gateway in front, on the loopback address; Ctrl-C stops
    both."""
    launch_timeout_s: float = 3600.0
    """How long the engine may take until it answers, in seconds."""

    def __post_init__(self) -> None:
        if self.gguf is not None and self.engine != "ktransformers":
            raise ConfigError(f"gguf is for ktransformers, and engine is {self.engine}")
        if self.ib_device is not None and self.engine != "sglang":
            raise ConfigError(f"ib_device is for sglang's layout pd, and engine is {self.engine}")
        for name, port in (("port", self.port), ("engine_port", self.engine_port)):
            if not 1 <= port < 65536:
                raise ConfigError(f"{name} is {port}; expected 1 to 65535")
        if self.port == self.engine_port:
            raise ConfigError(f"port and engine_port are both {self.port}; expected two ports")
        if self.launch_timeout_s <= 0:
            raise ConfigError(f"launch_timeout_s is {self.launch_timeout_s}; expected above 0 seconds")


def main(arguments: Sequence[str]) -> int:
    """Run `chogori deploy` with `arguments` and return the exit status."""
    options = parse(arguments)
    deployment = make_deployment(options)
    # Lazily: --help and what is refused above need neither tables nor YAML.
    from chogori.cli.deploy_report import print_files, print_plan, run_launch
    from chogori.deploy.formats.files import write_files

    files = make_files(options.format, deployment)
    print_plan(deployment.plan)
    if options.out is not None:
        write_files(files, options.out)
    if options.launch:
        return run_launch(deployment, options.out, options.launch_timeout_s, options.access)
    print_files(files, options.out)
    return 0


def parse(arguments: Sequence[str]) -> DeployArguments:
    """Read `MODEL --gpus 16 --gpu h200 …`. Raises ConfigError or exits with status 2."""
    return tyro.cli(
        DeployArguments,
        args=list(arguments),
        prog="chogori deploy",
        description="Size a model for GPUs, and write the commands and files that serve it behind the gateway.",
    )


def make_deployment(options: DeployArguments) -> Deployment:
    """Everything that follows from `options`, with nothing written or started.

    Raises ConfigError for what cannot be, DeploymentError where the model does not fit, WeightsError for a folder that
    is no model.
    """
    # Lazily: --help needs no engines.
    from chogori.deploy.engines.ktransformers import GGUF_BITS
    from chogori.deploy.engines.registry import find_engine, make_fleet
    from chogori.deploy.formats.files import Deployment
    from chogori.deploy.plan import Request, make_plan

    format = None if options.dtype == "auto" else options.dtype
    checkpoint = find_checkpoint(options.model, weights=options.weights, format=format)
    gguf = None if options.gguf is None else str(options.gguf.expanduser().absolute())
    request = Request(
        checkpoint=checkpoint,
        context=checkpoint.sizes.max_position_embeddings if options.context is None else options.context,
        concurrency=options.concurrency,
        expert_bits=None if gguf is None else GGUF_BITS,
    )
    engine = find_engine(options.engine, gguf)
    plan = make_plan(request, _machine(options), engine, None if options.layout == "auto" else options.layout)
    return Deployment(
        plan=plan,
        fleet=make_fleet(plan, options.engine_port, gguf=gguf, ib_device=options.ib_device),
        gateway_port=options.port,
        access=options.access or "require-keys",
        hosts=options.hosts,
        image=options.image,
        gateway_image=options.gateway_image,
    )


def make_files(format: Format, deployment: Deployment) -> list[File]:
    """The files of `deployment` in the form that was asked for. Raises ConfigError where it cannot be had in it."""
    # Lazily, each: YAML is for Kubernetes alone.
    if format == "shell":
        from chogori.deploy.formats.shell import shell_files as made
    elif format == "systemd":
        from chogori.deploy.formats.systemd import systemd_files as made
    elif format == "slurm":
        from chogori.deploy.formats.slurm import slurm_files as made
    else:
        from chogori.deploy.formats.kubernetes import kubernetes_files as made
    return made(deployment)


def _machine(options: DeployArguments) -> Machine:
    if options.gpus == "detect":
        if options.gpu is not None or options.gpus_per_node is not None:
            raise ConfigError(
                "gpus is detect, so gpu and gpus_per_node follow from it; give --gpus a number, or only it"
            )
        found = detect_machine()
        if options.cpu_memory_gib is None:
            return found
        memory = options.cpu_memory_gib * GIB
        return Machine(
            gpu=found.gpu, num_gpus=found.num_gpus, gpus_per_node=found.gpus_per_node, cpu_memory_bytes=memory
        )
    if options.gpu is None:
        raise ConfigError(f"gpu is not given; expected one of {', '.join(GPUS)}")
    return Machine(
        gpu=find_gpu(options.gpu),
        num_gpus=options.gpus,
        gpus_per_node=options.gpus_per_node or usual_gpus_per_node(options.gpus),
        cpu_memory_bytes=None if options.cpu_memory_gib is None else options.cpu_memory_gib * GIB,
    )
