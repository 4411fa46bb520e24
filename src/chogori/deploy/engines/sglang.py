"""SGLang, also with prefill and decode on nodes of their own.

Sources: Kimi K2's deployment guide (docs/deploy_guidance.md of MoonshotAI/Kimi-K2), SGLang's "Server Arguments" and "PD
Disaggregation". Departures from the guide's disaggregated example, which is a benchmark's: `--enable-deepep-moe` has
become `--moe-a2a-backend deepep` and the load balancer `sglang_router`; prefixes stay cached; contexts are as long as
asked; no experts are held twice, so that the memory plan holds; decode batches are bounded by what DeepEP dispatches.
"""

from __future__ import annotations

import dataclasses

from chogori.deploy.checkpoint import Dialect
from chogori.deploy.command import Command, Expansion
from chogori.deploy.engine import Engine
from chogori.deploy.fleet import ANY_ADDRESS, Fleet, NodeGroup, Place
from chogori.deploy.memory import Share
from chogori.deploy.plan import Group, Plan
from chogori.errors import ConfigError

RENDEZVOUS_PORT = 50_000
"""Kimi K2's deployment guide, as are the figures below unless they say otherwise."""
SPLIT_RENDEZVOUS_PORT = 5_757
SPLIT_PORT = 30_000
BOOTSTRAP_PORT = 8_998
"""Where the halves meet: SGLang's default."""
PREFILL_REQUESTS = 1_024
CHUNK_TOKENS = 4_096
"""Prompt tokens a pass on each data-parallel rank: 131,072 on 32 ranks."""
DISPATCH_TOKENS = 256
"""Most tokens of one rank that DeepEP's low-latency kernels send in a pass; the guide's 480 is for short contexts."""

SGLANG = Engine(
    name="sglang",
    layouts=("tp", "dp-ep", "pp", "pd"),
    shares={
        ("tp", "serve"): Share(fraction=0.85, of="static"),
        ("pp", "serve"): Share(fraction=0.85, of="static"),
        ("dp-ep", "serve"): Share(fraction=0.85, of="static"),
        ("pd", "prefill"): Share(fraction=0.85, of="static", prefill_tokens=CHUNK_TOKENS),
        ("pd", "decode"): Share(fraction=0.8, of="static", prefill_tokens=DISPATCH_TOKENS),
    },
    vendors=frozenset({"nvidia", "amd"}),
    fp8_without_units=False,
    program="python",
    module="sglang",
    installation="pip install sglang",
    health_path="/health",
    image="lmsysorg/sglang:latest",
)

TOOL_PARSERS: dict[Dialect, str] = {"kimi_k2": "kimi_k2", "deepseek_v3": "deepseekv3"}


def sglang_fleet(plan: Plan, port: int, ib_device: str | None) -> Fleet:
    """The processes of `plan`; the API listens at `port` of the first node.

    Raises ConfigError where prefill and decode stand apart and `ib_device`, the network devices of a node that the
    cache travels over, is not given.
    """
    if plan.chosen.name != "pd":
        group = plan.chosen.serving

        def command(place: Place) -> Command:
            return Command(words=(*serve_words(plan, group, place, port), *_parallel_words(plan, group)))

        nodes = NodeGroup(role="serve", num_nodes=group.num_nodes, command=command, port=port)
        return Fleet(groups=(nodes,), port=port)
    if ib_device is None:
        raise ConfigError("ib_device is not given; layout pd needs the nodes' RDMA devices, such as mlx5_0,mlx5_1")
    groups = tuple(_split_group(plan, group, ib_device) for group in plan.chosen.groups)
    return Fleet(groups=groups, router=lambda prefill, decode, host: _router(prefill, decode, host, port), port=port)


def serve_words(plan: Plan, group: Group, place: Place, port: int) -> list[str]:
    """What every SGLang server of a group is started with, but for the division of the model."""
    checkpoint = plan.request.checkpoint
    words = ["python", "-m", "sglang.launch_server", "--model-path", checkpoint.location]
    words += ["--served-model-name", checkpoint.name, "--trust-remote-code", "--host", place.host, "--port", str(port)]
    if group.num_nodes > 1:
        rendezvous = RENDEZVOUS_PORT if group.role == "serve" else SPLIT_RENDEZVOUS_PORT
        words += ["--dist-init-addr", place.at_head(rendezvous)]
        words += ["--nnodes", str(group.num_nodes), "--node-rank", place.rank_times(1)]
    share = plan.engine.shares[plan.chosen.name, group.role]
    words += ["--mem-fraction-static", str(share.fraction)]
    if plan.request.context != checkpoint.sizes.max_position_embeddings:
        words += ["--context-length", str(plan.request.context)]
    if checkpoint.stored_format == "float32":
        words += ["--dtype", checkpoint.format]
    return [*words, "--tool-call-parser", TOOL_PARSERS[checkpoint.dialect]]


def _parallel_words(plan: Plan, group: Group) -> list[str]:
    layout = group.layout
    if layout.kind == "dp-ep":
        words = ["--tp-size", str(layout.num_gpus), "--dp-size", str(layout.data), "--enable-dp-attention"]
        words += ["--moe-dense-tp-size", "1", "--enable-dp-lm-head"]
        words += ["--chunked-prefill-size", str(plan.engine.shares["dp-ep", "serve"].prefill_tokens * layout.data)]
        # DeepEP is made for NVLink and InfiniBand; elsewhere experts are divided without it.
        has_deepep = plan.machine.gpu.link.startswith("NVLink")
        return words + (["--moe-a2a-backend", "deepep"] if has_deepep else ["--ep-size", str(layout.num_gpus)])
    words = ["--tp-size", str(layout.tensor)]
    return words if layout.pipeline == 1 else [*words, "--pp-size", str(layout.pipeline)]


def _split_group(plan: Plan, group: Group, ib_device: str) -> NodeGroup:
    def command(place: Place) -> Command:
        # The other half and the router reach this one over the network.
        words = serve_words(plan, group, dataclasses.replace(place, host=ANY_ADDRESS), SPLIT_PORT)
        return Command(words=(*words, *_split_words(group, ib_device)), environment=_split_environment(group))

    return NodeGroup(role=group.role, num_nodes=group.num_nodes, command=command, port=SPLIT_PORT)


def _split_words(group: Group, ib_device: str) -> list[str]:
    ranks = group.layout.data
    words = ["--disaggregation-mode", group.role, "--disaggregation-ib-device", ib_device]
    words += ["--tp-size", str(ranks), "--dp-size", str(ranks), "--enable-dp-attention"]
    words += ["--moe-a2a-backend", "deepep", "--moe-dense-tp-size", "1", "--enable-dp-lm-head"]
    words += ["--disable-shared-experts-fusion", "--enable-two-batch-overlap", "--watchdog-timeout", "1000000"]
    if group.role == "prefill":
        words += ["--deepep-mode", "normal", "--chunked-prefill-size", str(CHUNK_TOKENS * ranks)]
        return [*words, "--max-running-requests", str(PREFILL_REQUESTS)]
    return [*words, "--deepep-mode", "low_latency", "--max-running-requests", str(DISPATCH_TOKENS * ranks)]


def _split_environment(group: Group) -> dict[str, str]:
    environment = {
        "MC_TE_METRIC": "true",
        "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "10000000",
        "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "100000",
        "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "100000",
        "PYTHONUNBUFFERED": "1",
    }
    if group.role == "decode":
        environment["SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"] = str(DISPATCH_TOKENS)
    return environment


def _router(prefill: str, decode: str, host: str, port: int) -> Command:
    words = ["python", "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    words += ["--prefill", Expansion(f"http://{prefill}:{SPLIT_PORT}"), str(BOOTSTRAP_PORT)]
    words += ["--decode", Expansion(f"http://{decode}:{SPLIT_PORT}")]
    return Command(words=(*words, "--host", host, "--port", str(port)))
