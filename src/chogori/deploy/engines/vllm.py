"""vLLM.

Sources: Kimi K2's deployment guide (docs/deploy_guidance.md of MoonshotAI/Kimi-K2); vLLM's own "Data Parallel
Deployment" and "Parallelism and Scaling". One departure: the guide starts a Ray cluster by hand for tensor parallelism
over nodes; here each node runs vLLM's own multi-node executor, so that one command a node is all.
"""

from __future__ import annotations

from chogori.deploy.command import Command
from chogori.deploy.engine import Engine
from chogori.deploy.fleet import Fleet, NodeGroup, Place
from chogori.deploy.memory import MAX_SEQUENCES, Share
from chogori.deploy.plan import Group, Plan

TENSOR_SHARE = Share(fraction=0.9, of="all")
"""vLLM's long-standing default of --gpu-memory-utilization, said aloud so that plan and engine agree."""
EXPERT_SHARE = Share(fraction=0.85, of="all")
"""Kimi K2's deployment guide: the rest is for the all-to-all buffers."""
MASTER_PORT = 29_501
RPC_PORT = 13_345

VLLM = Engine(
    name="vllm",
    layouts=("tp", "dp-ep", "pp"),
    shares={("tp", "serve"): TENSOR_SHARE, ("pp", "serve"): TENSOR_SHARE, ("dp-ep", "serve"): EXPERT_SHARE},
    vendors=frozenset({"nvidia", "amd"}),
    fp8_without_units=True,
    program="vllm",
    module=None,
    installation="pip install vllm",
    health_path="/health",
    image="vllm/vllm-openai:latest",
)


def vllm_fleet(plan: Plan, port: int) -> Fleet:
    """The processes of `plan`; the API listens at `port` of the first node."""
    group = plan.chosen.serving

    def command(place: Place) -> Command:
        return Command(words=tuple(_words(plan, group, place, port)))

    nodes = NodeGroup(role="serve", num_nodes=group.num_nodes, command=command, port=port)
    return Fleet(groups=(nodes,), port=port)


def _words(plan: Plan, group: Group, place: Place, port: int) -> list[str]:
    checkpoint, layout = plan.request.checkpoint, group.layout
    words = ["vllm", "serve", checkpoint.location]
    if not place.is_head:
        words += ["--headless"]
    words += ["--host", place.host, "--port", str(port), "--served-model-name", checkpoint.name, "--trust-remote-code"]
    if layout.kind == "dp-ep":
        words += ["--data-parallel-size", str(layout.data)]
        if group.num_nodes > 1:
            words += ["--data-parallel-size-local", str(plan.machine.gpus_per_node)]
            words += ["--data-parallel-address", place.at_head(), "--data-parallel-rpc-port", str(RPC_PORT)]
            if not place.is_head:
                words += ["--data-parallel-start-rank", place.rank_times(plan.machine.gpus_per_node)]
        words += ["--enable-expert-parallel"]
        words += ["--max-num-batched-tokens", str(EXPERT_SHARE.prefill_tokens), "--max-num-seqs", str(MAX_SEQUENCES)]
    else:
        words += ["--tensor-parallel-size", str(layout.tensor)]
        if layout.pipeline > 1:
            words += ["--pipeline-parallel-size", str(layout.pipeline)]
        if group.num_nodes > 1:
            words += ["--nnodes", str(group.num_nodes), "--node-rank", place.rank_times(1)]
            words += ["--master-addr", place.at_head(), "--master-port", str(MASTER_PORT)]
    share = plan.engine.shares[plan.chosen.name, "serve"]
    words += ["--gpu-memory-utilization", str(share.fraction)]
    if plan.request.context != checkpoint.sizes.max_position_embeddings:
        words += ["--max-model-len", str(plan.request.context)]
    if checkpoint.stored_format == "float32":
        words += ["--dtype", checkpoint.format]
    return [*words, "--enable-auto-tool-choice", "--tool-call-parser", checkpoint.dialect]
