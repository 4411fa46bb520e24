"""One bash script for each node, one for the router where there is one, and one for the gateway."""

from __future__ import annotations

import shlex

from chogori.deploy.command import Command
from chogori.deploy.engine import Role
from chogori.deploy.fleet import LOOPBACK, NodeGroup, Place
from chogori.deploy.formats.files import Deployment, File

READINESS_LIMIT_S = 3600
"""How long the gateway waits for the engine: a terabyte of weights from a network disk takes half an hour."""

HEADS: dict[Role, str] = {"serve": "HEAD_ADDRESS", "prefill": "PREFILL_ADDRESS", "decode": "DECODE_ADDRESS"}
"""The variable with the address of a group's first node."""
_MEANINGS = {
    "HEAD_ADDRESS": "the address of node 0, as every node reaches it",
    "PREFILL_ADDRESS": "the address of the first prefill node, as every node reaches it",
    "DECODE_ADDRESS": "the address of the first decode node, as every node reaches it",
    "HOSTS": "the nodes with their GPUs, such as node0:8,node1:8",
}


def shell_files(deployment: Deployment) -> list[File]:
    """Every script, named by what runs in it."""
    files: list[File] = []
    for group in deployment.fleet.groups:
        for rank in range(group.num_nodes):
            command = group.command(Place(rank=rank, head=HEADS[group.role]))
            if command is not None:
                title = f"{deployment.title}: {script_name(group, rank).removesuffix('.sh')} of {group.num_nodes}"
                body = script(deployment, title, command)
                files.append(File(name=script_name(group, rank), content=body, executable=True))
    if deployment.fleet.router is not None:
        heads = ("${PREFILL_ADDRESS}", "${DECODE_ADDRESS}")
        body = script(deployment, f"{deployment.title}: router", deployment.fleet.router(*heads, LOOPBACK))
        files.append(File(name="router.sh", content=body, executable=True))
    files.append(File(name="gateway.sh", content=gateway_script(deployment), executable=True))
    return files


def script_name(group: NodeGroup, rank: int) -> str:
    """Such as node-0.sh or prefill-3.sh."""
    return f"{'node' if group.role == 'serve' else group.role}-{rank}.sh"


def script(deployment: Deployment, title: str, command: Command) -> str:
    """A script that becomes `command`, once it has been told what it needs."""
    text = command.as_bash()
    lines = ["#!/usr/bin/env bash", f"# {title}", "set -euo pipefail"]
    lines += [_setting(deployment, name) for name in variables(text)]
    return "\n".join([*lines, text])


def variables(text: str) -> list[str]:
    """What the bash `text` must be told."""
    return [name for name in _MEANINGS if f"${{{name}}}" in text]


def known_values(deployment: Deployment) -> dict[str, str]:
    """The variables whose values follow from the addresses of the nodes."""
    hosts = deployment.hosts
    if not hosts:
        return {}
    gpus = deployment.plan.machine.gpus_per_node
    values = {"HOSTS": ",".join(f"{host}:{gpus}" for host in hosts)}
    start = 0
    for group in deployment.fleet.groups:
        values[HEADS[group.role]] = hosts[start]
        start += group.num_nodes
    return values


def _setting(deployment: Deployment, name: str) -> str:
    value = known_values(deployment).get(name)
    if value is None:
        return f': "${{{name}:?set it to {_MEANINGS[name]}}}"'
    return f'{name}="${{{name}:-{value}}}"'


def gateway_script(deployment: Deployment) -> str:
    """Wait until the engine answers, then become the gateway. It stands on the node that answers for the engine."""
    address = f"http://{LOOPBACK}:{deployment.fleet.port}"
    command = deployment.gateway(f"{address}/v1")
    return f"""#!/usr/bin/env bash
# {deployment.title}: the gateway, on the node whose engine listens at {LOOPBACK}
set -euo pipefail
{readiness_loop(address + deployment.plan.engine.health_path)}{command.as_bash()}"""


def readiness_loop(url: str, giving_up: str | None = None) -> str:
    """Bash that goes on once `url` answers, and fails when that takes too long or the condition `giving_up` holds."""
    otherwise = "" if giving_up is None else f" || {giving_up}"
    return f"""until curl --silent --fail --output /dev/null {shlex.quote(url)}; do
  if ((SECONDS > {READINESS_LIMIT_S})){otherwise}; then
    echo "nothing answers at {url} after $SECONDS s" >&2
    exit 1
  fi
  sleep 5
done
"""
