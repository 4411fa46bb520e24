"""TensorRT-LLM: one MPI program over all GPUs.

Source: Kimi K2's deployment guide (docs/deploy_guidance.md of MoonshotAI/Kimi-K2), and the options of `trtllm-serve`.
With data-parallel attention each node holds all experts once, and they are sliced over the nodes, as in the guide. One
departure: the guide's option file says `padding_enabled`, which the releases call `enable_padding`.
"""

from __future__ import annotations

from chogori.deploy.checkpoint import Dialect
from chogori.deploy.command import Command, Expansion
from chogori.deploy.engine import Engine
from chogori.deploy.fleet import Fleet, NodeGroup, Place
from chogori.deploy.memory import Share
from chogori.deploy.plan import Group, Plan

BATCH = 128
"""Kimi K2's deployment guide, as are the tokens and the fraction."""
SHARE = Share(fraction=0.95, of="free", prefill_tokens=4096)
OPTIONS_FILE = Expansion("${OPTIONS}")

TENSORRT_LLM = Engine(
    name="tensorrt-llm",
    layouts=("dp-ep", "tp", "pp"),
    shares={("dp-ep", "serve"): SHARE, ("tp", "serve"): SHARE, ("pp", "serve"): SHARE},
    vendors=frozenset({"nvidia"}),
    fp8_without_units=False,
    program="trtllm-serve",
    module=None,
    installation="pip install tensorrt-llm blobfile",
    health_path="/health",
    image="nvcr.io/nvidia/tensorrt-llm/release:latest",
)

TOOL_PARSERS: dict[Dialect, str] = {"kimi_k2": "kimi_k2", "deepseek_v3": "deepseekv3"}


def tensorrt_llm_fleet(plan: Plan, port: int) -> Fleet:
    """The processes of `plan`; the API listens at `port` of the first node, where mpirun starts all ranks."""
    group = plan.chosen.serving

    def command(place: Place) -> Command | None:
        words = _words(plan, group, place, port)
        if group.num_nodes > 1:
            words = ["trtllm-llmapi-launch", *words]
            if place.mpi == "mpirun":
                if not place.is_head:
                    return None
                ranks = ["mpirun", "-np", str(plan.machine.num_gpus), "-H", Expansion("${HOSTS}")]
                words = [*ranks, "--allow-run-as-root", *words]
        return Command(words=tuple(words), preparation=_options(group))

    nodes = NodeGroup(
        role="serve",
        num_nodes=group.num_nodes,
        command=command,
        tasks_per_node=plan.machine.gpus_per_node if group.num_nodes > 1 else 1,
        port=port,
    )
    return Fleet(groups=(nodes,), port=port)


def _words(plan: Plan, group: Group, place: Place, port: int) -> list[str]:
    checkpoint, layout = plan.request.checkpoint, group.layout
    words = ["trtllm-serve", "serve", checkpoint.location, "--backend", "pytorch"]
    if layout.kind == "dp-ep":
        words += ["--tp_size", str(layout.num_gpus), "--ep_size", str(plan.machine.gpus_per_node)]
    else:
        words += ["--tp_size", str(layout.tensor)]
        if layout.pipeline > 1:
            words += ["--pp_size", str(layout.pipeline)]
    words += ["--kv_cache_free_gpu_memory_fraction", str(SHARE.fraction), "--trust_remote_code"]
    words += ["--max_batch_size", str(BATCH), "--max_num_tokens", str(SHARE.prefill_tokens)]
    if plan.request.context != checkpoint.sizes.max_position_embeddings:
        words += ["--max_seq_len", str(plan.request.context)]
    words += ["--extra_llm_api_options", OPTIONS_FILE, "--tool_parser", TOOL_PARSERS[checkpoint.dialect]]
    return [*words, "--host", place.host, "--port", str(port)]


def _options(group: Group) -> str:
    """Bash that writes the options which have no flag."""
    sizes: list[int] = []
    size = 1
    while size <= BATCH:
        sizes.append(size)
        size *= 2
    lines = [
        # A file of its own for each rank: one must not empty what another is reading.
        "OPTIONS=$(mktemp --suffix=.yml)",
        "cat > \"${OPTIONS}\" <<'YAML'",
        "cuda_graph_config:",
        "  enable_padding: true",
        f"  batch_sizes: [{', '.join(map(str, sizes))}]",
        "print_iter_log: true",
        f"enable_attention_dp: {'true' if group.layout.kind == 'dp-ep' else 'false'}",
        "YAML",
    ]
    return "\n".join(lines) + "\n"
