"""The processes of a deployment, before it is said how they are started: groups of nodes, a router, the gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chogori.deploy.command import Command, Expansion
from chogori.deploy.engine import Role

ANY_ADDRESS = "0.0.0.0"
LOOPBACK = "127.0.0.1"

Access = Literal["require-keys", "open"]
"""Whether the gateway answers those with a key only, or everybody who reaches it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one process of a group runs, as far as it is known when its command is written."""

    rank: int | None
    """Of the node within its group; None where it is only known at run time."""
    rank_variable: str = "NODE_RANK"
    """Shell variable that holds the rank then."""
    head: str = "HEAD_ADDRESS"
    """Shell variable with the address of the group's first node."""
    host: str = LOOPBACK
    """Address that the API listens at."""
    mpi: Literal["mpirun", "srun"] = "mpirun"
    """What starts the ranks of engines that are MPI programs."""

    @property
    def is_head(self) -> bool:
        """Whether this is the group's first node, which answers requests."""
        return self.rank == 0

    def rank_times(self, factor: int) -> str:
        """The rank multiplied, as a word of a command."""
        if self.rank is not None:
            return str(self.rank * factor)
        return Expansion(f"${{{self.rank_variable}}}" if factor == 1 else f"$(({self.rank_variable} * {factor}))")

    def at_head(self, port: int | None = None) -> str:
        """The address of the first node, with a port where one is given."""
        return Expansion(f"${{{self.head}}}" if port is None else f"${{{self.head}}}:{port}")


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes that run one engine together."""

    role: Role
    num_nodes: int
    command: Callable[[Place], Command | None]
    """What a node runs; None where the first node starts it from afar."""
    tasks_per_node: int = 1
    """Processes that a batch scheduler starts on each node."""
    port: int
    """Of the engine's API, on the first node."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Everything that runs, but for the gateway."""

    groups: tuple[NodeGroup, ...]
    router: Callable[[str, str, str], Command] | None = None
    """Given the addresses of the prefill group and of the decode group, as bash expands them, and the one to listen at:
    the process that sends requests to both. None where the one group answers by itself."""
    port: int
    """Where the whole answers OpenAI's API: of the router, or of the one group."""


def gateway_command(model_url: str, context: int, *, host: str, port: int, access: Access | None) -> Command:
    """Chogori's gateway in front of what answers at `model_url` for sequences of `context` tokens.

    Without `access` it does what it does by itself at `host`.
    """
    words = ["chogori", "serve", "--model", model_url, "--context-length", str(context)]
    words += ["--host", host, "--port", str(port)]
    return Command(words=tuple(words if access is None else [*words, f"--{access}"]))
