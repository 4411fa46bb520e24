"""Files to be written, and what every form of a deployment is made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chogori.deploy.command import Command
from chogori.deploy.fleet import ANY_ADDRESS, Access, Fleet, gateway_command
from chogori.deploy.plan import Plan
from chogori.durable_files import disk_errors, write_atomically
from chogori.errors import ConfigError

EXECUTABLE = 0o755


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a deployment."""

    name: str
    content: str
    executable: bool = False


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A plan with its processes and its gateway."""

    plan: Plan
    fleet: Fleet
    gateway_port: int
    access: Access = "require-keys"
    """Who the gateway answers."""
    hosts: tuple[str, ...] = ()
    """Addresses of the nodes, the first first; empty where they are not known yet."""
    image: str | None = None
    """Container of the engine; None for the engine's own."""
    gateway_image: str = "chogori:latest"

    def __post_init__(self) -> None:
        needed = self.plan.machine.num_nodes
        if self.hosts and len(self.hosts) != needed:
            raise ConfigError(f"hosts names {len(self.hosts)} nodes; expected {needed}, the first first")

    @property
    def name(self) -> str:
        """As Kubernetes and systemd accept it."""
        return re.sub(r"[^a-z0-9]+", "-", self.plan.request.checkpoint.name.lower()).strip("-") or "model"

    def gateway(self, model_url: str) -> Command:
        """The gateway that answers the network in front of `model_url`."""
        context = self.plan.request.context
        return gateway_command(model_url, context, host=ANY_ADDRESS, port=self.gateway_port, access=self.access)

    @property
    def title(self) -> str:
        """Such as "kimi-k2 with vllm, DP16 + EP16"."""
        return f"{self.plan.request.checkpoint.name} with {self.plan.engine.name}, {self.plan.chosen.words}"


def write_files(files: Sequence[File], folder: Path) -> None:
    """Write `files` into `folder`, each whole or not at all. Files of other names are left as they are.

    Raises StorageError where the disk refuses, ConfigError where `folder` is a file.
    """
    if folder.is_file():
        raise ConfigError(f"out is {folder}, a file; expected a folder")
    with disk_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            path = folder / file.name
            write_atomically(path, [file.content.encode()])
            if file.executable:
                path.chmod(EXECUTABLE)
