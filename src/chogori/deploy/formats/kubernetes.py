"""Kubernetes objects: a LeaderWorkerSet for an engine over nodes, a Deployment for one on a node, and the gateway.

Sources: the LeaderWorkerSet API (leaderworkerset.x-k8s.io/v1) and its examples for vLLM and SGLang. Not for engines
that MPI starts: their ranks need the MPI Operator, and a job that ends is no service.
"""

from __future__ import annotations

from typing import Any

import yaml

from chogori.deploy.command import Command
from chogori.deploy.fleet import ANY_ADDRESS, NodeGroup, Place
from chogori.deploy.formats.files import Deployment, File
from chogori.deploy.formats.shell import READINESS_LIMIT_S
from chogori.deploy.gpus import GIB
from chogori.deploy.weights import total_bytes
from chogori.errors import ConfigError

Object = dict[str, Any]
"""A Kubernetes object, as its YAML reads."""

PROBE_PERIOD_S = 10
GPU_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
DOWNLOAD_FOLDER = "/weights"
"""In the container, whoever its image runs as: Hugging Face downloads to where HF_HOME says."""


def kubernetes_files(deployment: Deployment) -> list[File]:
    """One file for `kubectl apply`. Raises ConfigError for an engine that MPI starts on several nodes."""
    documents = yaml.dump_all(objects(deployment), Dumper=_BlockDumper, sort_keys=False, width=120)
    heading = f"# {deployment.title}. Apply it with kubectl; LeaderWorkerSets need their controller in the cluster.\n"
    return [File(name="deployment.yaml", content=heading + documents)]


def objects(deployment: Deployment) -> list[Object]:
    """Every object, in the order in which they are to be made."""
    fleet = deployment.fleet
    if any(group.tasks_per_node > 1 for group in fleet.groups):
        raise ConfigError(
            f"format is 'kubernetes', and {deployment.plan.engine.name} on {deployment.plan.machine.num_nodes} nodes "
            "is started by MPI; expected shell, systemd or slurm, or --engine vllm or sglang"
        )
    made: list[Object] = [] if deployment.plan.request.checkpoint.is_folder else [_weights_claim(deployment)]
    for group in fleet.groups:
        made += [_engine(deployment, group), _service(_group_name(deployment, group), group.port, leader=group)]
    answering = _group_name(deployment, fleet.groups[0])
    if fleet.router is not None:
        prefill, decode = (_group_name(deployment, group) for group in fleet.groups)
        answering = f"{deployment.name}-router"
        command = fleet.router(prefill, decode, ANY_ADDRESS)
        made += [_plain_deployment(deployment, answering, _image(deployment), command, fleet.port)]
        made += [_service(answering, fleet.port)]
    gateway = f"{deployment.name}-gateway"
    command = deployment.gateway(f"http://{answering}:{fleet.port}/v1")
    made += [
        _gateway_claim(gateway),
        _gateway(deployment, gateway, command),
        _service(gateway, deployment.gateway_port),
    ]
    return made


class _BlockDumper(yaml.SafeDumper):
    """Scripts as blocks of lines, not as one line with escapes."""


def _represent_text(_dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _represent_text)


def _group_name(deployment: Deployment, group: NodeGroup) -> str:
    return f"{deployment.name}-{'engine' if group.role == 'serve' else group.role}"


def _image(deployment: Deployment) -> str:
    return deployment.image or deployment.plan.engine.image


def _engine(deployment: Deployment, group: NodeGroup) -> Object:
    name = _group_name(deployment, group)
    place = Place(rank=0, head="LWS_LEADER_ADDRESS", rank_variable="LWS_WORKER_INDEX", host=ANY_ADDRESS)
    leader = _engine_pod(deployment, group, place)
    if group.num_nodes == 1:
        return _deployment_of(name, leader)
    worker = Place(rank=None, head=place.head, rank_variable=place.rank_variable, host=ANY_ADDRESS)
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {
                "size": group.num_nodes,
                # One lost node loses the collective: the group starts anew together.
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {"metadata": {"labels": _labels(name)}, "spec": leader},
                "workerTemplate": {"spec": _engine_pod(deployment, group, worker)},
            },
        },
    }


def _engine_pod(deployment: Deployment, group: NodeGroup, place: Place) -> Object:
    machine, checkpoint = deployment.plan.machine, deployment.plan.request.checkpoint
    command = group.command(place)
    assert command is not None, "engines that MPI starts are refused before"
    resources: Object = {GPU_RESOURCES[machine.gpu.vendor]: str(machine.gpus_per_node)}
    if deployment.plan.chosen.name == "cpu-experts" and machine.cpu_memory_bytes is not None:
        resources["memory"] = f"{machine.cpu_memory_bytes // GIB}Gi"
    mounts: list[Object] = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[Object] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if checkpoint.is_folder:
        mounts.append({"name": "weights", "mountPath": checkpoint.location, "readOnly": True})
        volumes.append({"name": "weights", "hostPath": {"path": checkpoint.location, "type": "Directory"}})
    else:
        mounts.append({"name": "weights", "mountPath": DOWNLOAD_FOLDER})
        volumes.append({"name": "weights", "persistentVolumeClaim": {"claimName": f"{deployment.name}-weights"}})
    container: Object = {
        "name": "engine",
        "image": _image(deployment),
        "command": ["bash", "-c", command.as_bash()],
        "resources": {"limits": resources},
        # RDMA registers memory, which must not be paged out.
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
        "volumeMounts": mounts,
    }
    if not checkpoint.is_folder:
        container["env"] = [
            {"name": "HF_HOME", "value": DOWNLOAD_FOLDER},
            {
                "name": "HF_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": "hugging-face", "key": "token", "optional": True}},
            },
        ]
    if place.is_head:
        container["ports"] = [{"containerPort": group.port}]
        container |= _probes(deployment.plan.engine.health_path, group.port)
    return {"containers": [container], "volumes": volumes}


def _probes(path: str, port: int) -> Object:
    """The start may take as long as the weights take to load; afterwards the answer must come."""
    start = {**_request(path, port), "failureThreshold": READINESS_LIMIT_S // PROBE_PERIOD_S}
    return {"startupProbe": start, "readinessProbe": _request(path, port)}


def _request(path: str, port: int) -> Object:
    return {"httpGet": {"path": path, "port": port}, "periodSeconds": PROBE_PERIOD_S}


def _gateway(deployment: Deployment, name: str, command: Command) -> Object:
    made = _plain_deployment(deployment, name, deployment.gateway_image, command, deployment.gateway_port)
    pod: Object = made["spec"]["template"]["spec"]
    # Keys, usage and files live on the claim; two gateways may not write to it at one time.
    made["spec"]["strategy"] = {"type": "Recreate"}
    container: Object = pod["containers"][0]
    container["env"] = [{"name": "XDG_DATA_HOME", "value": "/data"}]
    container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]
    return made


def _plain_deployment(deployment: Deployment, name: str, image: str, command: Command, port: int) -> Object:
    is_gateway = image == deployment.gateway_image
    container: Object = {
        "name": name.removeprefix(f"{deployment.name}-"),
        "image": image,
        "command": ["bash", "-c", command.as_bash()],
        "ports": [{"containerPort": port}],
        **_probes("/ready" if is_gateway else "/health", port),
    }
    return _deployment_of(name, {"containers": [container]})


def _deployment_of(name: str, pod: Object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": _labels(name)},
            "template": {"metadata": {"labels": _labels(name)}, "spec": pod},
        },
    }


def _service(name: str, port: int, *, leader: NodeGroup | None = None) -> Object:
    """Only the leader of a group carries the label: workers answer no requests."""
    made: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": _labels(name), "ports": [{"name": "http", "port": port, "targetPort": port}]},
    }
    if leader is not None and leader.role == "prefill":
        # The decode nodes fetch the cache from the prefill nodes on ports that are chosen at run time.
        made["spec"]["clusterIP"] = "None"
    return made


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}


def _weights_claim(deployment: Deployment) -> Object:
    """A tenth more than the weights, for the tokenizer and partial downloads."""
    size = -(-total_bytes(deployment.plan.request.checkpoint) * 11 // (10 * GIB))
    return _claim(f"{deployment.name}-weights", "ReadWriteMany", size)


def _gateway_claim(name: str) -> Object:
    return _claim(name, "ReadWriteOnce", 10)


def _claim(name: str, mode: str, gib: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": f"{gib}Gi"}}},
    }
