"""One Slurm job: the engine on every node, then the gateway on the first."""

from __future__ import annotations

from chogori.deploy.command import Command
from chogori.deploy.fleet import LOOPBACK, NodeGroup, Place
from chogori.deploy.formats.files import Deployment, File
from chogori.deploy.formats.shell import HEADS, readiness_loop


def slurm_files(deployment: Deployment) -> list[File]:
    """The job, for `sbatch`."""
    return [File(name="deploy.sbatch", content=_job(deployment), executable=True)]


def _job(deployment: Deployment) -> str:
    machine = deployment.plan.machine
    parts = [_head(deployment, machine.num_nodes, machine.gpus_per_node)]
    start = 0
    for group in deployment.fleet.groups:
        parts.append(_step(group, start, alone=len(deployment.fleet.groups) == 1))
        start += group.num_nodes
    if deployment.fleet.router is not None:
        router = deployment.fleet.router("${PREFILL_ADDRESS}", "${DECODE_ADDRESS}", LOOPBACK)
        parts.append(f"({_inline(router)}) &\n")
    parts.append(_gateway(deployment))
    return "\n".join(parts)


def _head(deployment: Deployment, num_nodes: int, gpus_per_node: int) -> str:
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={deployment.name}",
        f"#SBATCH --nodes={num_nodes}",
        f"#SBATCH --gpus-per-node={gpus_per_node}",
        "#SBATCH --exclusive",
        "#SBATCH --output=%x-%j.log",
        f"# {deployment.title}, with the gateway on the first node. For sbatch; add your partition and time.",
        "set -euo pipefail",
        'names=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?submit this with sbatch}")',
        'mapfile -t NODES <<< "$names"',
    ]
    start = 0
    for group in deployment.fleet.groups:
        lines.append(f'export {HEADS[group.role]}="${{NODES[{start}]}}"')
        start += group.num_nodes
    return "\n".join([*lines, "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", ""])


def _step(group: NodeGroup, start: int, *, alone: bool) -> str:
    """What a node runs is told what is special of the first node by its rank, so that one text does for all."""
    head, rank = HEADS[group.role], "SLURM_PROCID"
    first = group.command(Place(rank=0, head=head, mpi="srun"))
    assert first is not None, "a batch scheduler starts every node"
    body = first.as_bash()
    if group.num_nodes > 1 and group.tasks_per_node == 1:
        other = group.command(Place(rank=None, rank_variable=rank, head=head, mpi="srun"))
        assert other is not None, "a batch scheduler starts every node"
        body = f"if ((SLURM_PROCID == 0)); then\n{_indented(body)}fi\n{other.as_bash()}"
    variable = f"{group.role.upper()}_NODE"
    flags = [f"--nodes={group.num_nodes}", f"--ntasks-per-node={group.tasks_per_node}", "--kill-on-bad-exit=1"]
    if not alone:
        flags.append(f"--relative={start}")
    if group.tasks_per_node > 1:
        flags.append("--mpi=pmix")
    return f"""{variable}=$(
  cat <<'BASH'
{body}BASH
)
srun {" ".join(flags)} bash -c "${variable}" &
{_step_variable(group)}=$!
"""


def _step_variable(group: NodeGroup) -> str:
    return f"{group.role.upper()}_STEP"


def _gateway(deployment: Deployment) -> str:
    address = f"http://{LOOPBACK}:{deployment.fleet.port}"
    command = deployment.gateway(f"{address}/v1")
    over = " || ".join(f'! kill -0 "${_step_variable(group)}"' for group in deployment.fleet.groups)
    return f"""# The batch script runs on the first node, as does the engine's API.
{readiness_loop(address + deployment.plan.engine.health_path, over)}({_inline(command)}) &
# Whichever ends first ends the job.
wait -n
"""


def _inline(command: Command) -> str:
    return command.as_bash().strip()


def _indented(text: str) -> str:
    """Two spaces before each line; heredocs, whose end must stand at the margin, are not among what is indented."""
    return "".join(f"  {line}\n" for line in text.splitlines())
