"""Kubernetes objects against the schemas of Kubernetes, and LeaderWorkerSets against their own."""

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from chogori.deploy.formats.kubernetes import kubernetes_files
from chogori.errors import ConfigError
from tests.deploy.deployments import official, typed
from tests.deploy.recorder import Recorder

LARGE = ("kimi-k2", "--gpus", "128", "--gpu", "h200", "--engine", "sglang", "--layout", "pd", "--ib-device", "mlx5_0")
SMALL = ("kimi-k2", "--gpus", "1", "--gpu", "rtx4090")
VERSION = "1.34"
# leaderworkerset.x-k8s.io/v1: what its custom resource definition requires and allows. Pods are checked as pods.
LEADER_WORKER_SET: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "leaderworkerset.x-k8s.io/v1"},
        "kind": {"const": "LeaderWorkerSet"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["leaderWorkerTemplate"],
            "additionalProperties": False,
            "properties": {
                "replicas": {"type": "integer", "minimum": 0},
                "startupPolicy": {"enum": ["LeaderCreated", "LeaderReady"]},
                "rolloutStrategy": {"type": "object"},
                "networkConfig": {"type": "object"},
                "leaderWorkerTemplate": {
                    "type": "object",
                    "required": ["workerTemplate"],
                    "additionalProperties": False,
                    "properties": {
                        "size": {"type": "integer", "minimum": 1},
                        "restartPolicy": {"enum": ["Default", "RecreateGroupOnPodRestart", "None"]},
                        "leaderTemplate": {"type": "object", "required": ["spec"]},
                        "workerTemplate": {"type": "object", "required": ["spec"]},
                    },
                },
            },
        },
    },
}


def documents(*arguments: str) -> list[dict[str, Any]]:
    (file,) = kubernetes_files(typed(*arguments))
    return list(yaml.safe_load_all(file.content))


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


@pytest.mark.parametrize(
    "arguments",
    [
        ("kimi-k2", "--gpus", "16", "--gpu", "h200"),
        ("kimi-k2", "--gpus", "16", "--gpu", "mi300x", "--engine", "sglang", "--concurrency", "64"),
        ("kimi-k2", "--gpus", "8", "--gpu", "b200", "--weights", "/models/kimi-k2"),
        (*SMALL, "--engine", "ktransformers", "--cpu-memory-gib", "1152", "--context", "4096"),
        ("moonlight-16b-a3b", "--gpus", "1", "--gpu", "h100", "--engine", "tensorrt-llm"),
        LARGE,
    ],
    ids=lambda arguments: "-".join(arguments[2:8:2]),
)
def test_every_object_is_valid(arguments: tuple[str, ...]) -> None:
    for item in documents(*arguments):
        if item["kind"] != "LeaderWorkerSet":
            kubernetes_validate.validate(item, VERSION, strict=True)
            continue
        jsonschema.validate(item, LEADER_WORKER_SET)
        template = item["spec"]["leaderWorkerTemplate"]
        for role in ("leaderTemplate", "workerTemplate"):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": template[role]["spec"]}
            kubernetes_validate.validate(pod, VERSION, strict=True)


def test_the_validators_would_object() -> None:
    item = documents("kimi-k2", "--gpus", "8", "--gpu", "b200")[1]
    assert item["kind"] == "Deployment"
    item["spec"]["template"]["spec"]["containers"][0]["imagee"] = "misspelt"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, VERSION, strict=True)


def test_services_lead_to_pods_with_their_labels_and_ports() -> None:
    objects = documents("kimi-k2", "--gpus", "16", "--gpu", "h200")
    pods = {item["metadata"]["name"]: item["spec"]["template"] for item in of_kind(objects, "Deployment").values()} | {
        name: item["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
        for name, item in of_kind(objects, "LeaderWorkerSet").items()
    }
    for name, service in of_kind(objects, "Service").items():
        assert service["spec"]["selector"] == pods[name]["metadata"]["labels"]
        ports = [port["containerPort"] for port in pods[name]["spec"]["containers"][0]["ports"]]
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ports
    workers = of_kind(objects, "LeaderWorkerSet")["kimi-k2-engine"]["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    assert "labels" not in workers.get("metadata", {}), "workers answer no requests"


def test_claims_that_are_mounted_are_made() -> None:
    for arguments in (("--gpus", "16", "--gpu", "h200"), ("--gpus", "8", "--gpu", "b200", "--weights", "/models/k2")):
        objects = documents("kimi-k2", *arguments)
        text = yaml.safe_dump(objects)
        claims = of_kind(objects, "PersistentVolumeClaim")
        assert {name for name in ("kimi-k2-weights", "kimi-k2-gateway") if f"claimName: {name}" in text} == set(claims)
    weights = of_kind(documents("kimi-k2", "--gpus", "16", "--gpu", "h200"), "PersistentVolumeClaim")["kimi-k2-weights"]
    assert weights["spec"]["resources"]["requests"]["storage"] == "1055Gi", "958.5 GiB and a tenth"


def test_pods_run_the_commands(tmp_path: Path) -> None:
    """What a container is told to run, run with the variables that a LeaderWorkerSet sets."""
    programs = Recorder(folder=tmp_path)
    programs.stand_in("vllm", "chogori")
    objects = documents("kimi-k2", "--gpus", "24", "--gpu", "h200", "--layout", "dp-ep")
    template = of_kind(objects, "LeaderWorkerSet")["kimi-k2-engine"]["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 3
    for index, role in enumerate(("leaderTemplate", "workerTemplate", "workerTemplate")):
        container = template[role]["spec"]["containers"][0]
        environment = {"LWS_LEADER_ADDRESS": "k2-0.k2", "LWS_WORKER_INDEX": str(index)}
        result = programs.run(container["command"], environment)
        assert result.returncode == 0, result.stderr
    starts = [call.words[call.words.index("--data-parallel-start-rank") + 1] for call in programs.calls[1:]]
    assert starts == ["8", "16"]
    assert all("k2-0.k2" in call.words for call in programs.calls)
    gateway = of_kind(objects, "Deployment")["kimi-k2-gateway"]["spec"]["template"]["spec"]["containers"][0]
    assert programs.run(gateway["command"], {}).returncode == 0
    assert programs.calls[-1].words[:4] == ["chogori", "serve", "--model", "http://kimi-k2-engine:8000/v1"]


def test_halves_are_sets_behind_a_router() -> None:
    objects = documents(*LARGE)
    sets = of_kind(objects, "LeaderWorkerSet")
    sizes = {name: item["spec"]["leaderWorkerTemplate"]["size"] for name, item in sets.items()}
    assert sizes == {"kimi-k2-prefill": 4, "kimi-k2-decode": 12}
    router = of_kind(objects, "Deployment")["kimi-k2-router"]["spec"]["template"]["spec"]["containers"][0]
    assert '--prefill "http://kimi-k2-prefill:30000" 8998' in router["command"][2]
    gateway = of_kind(objects, "Deployment")["kimi-k2-gateway"]["spec"]["template"]["spec"]["containers"][0]
    assert "--model http://kimi-k2-router:8000/v1" in gateway["command"][2]


def test_the_file_reads_as_written() -> None:
    (file,) = kubernetes_files(official())
    assert "&id" not in file.content, "anchors, which people do not read"
    assert file.content.startswith("# kimi-k2 with vllm, TP16.")
    assert "          - |\n            exec vllm serve moonshotai/Kimi-K2-Instruct \\\n" in file.content


def test_mpi_over_nodes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="tensorrt-llm on 2 nodes is started by MPI; expected shell, systemd or slurm"
    ):
        documents("kimi-k2", "--gpus", "16", "--gpu", "h200", "--engine", "tensorrt-llm")
