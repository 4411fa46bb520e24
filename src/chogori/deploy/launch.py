"""Starting a deployment on this machine: the engine under supervision, then the gateway in front of it.

The engine writes to a log file; the gateway is started when the engine answers, and both stop together, the gateway
first, so that answers under way can end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import httpx

from chogori.deploy.command import Command
from chogori.deploy.engine import Engine
from chogori.deploy.fleet import LOOPBACK, Access, Place, gateway_command
from chogori.deploy.formats.files import Deployment, File, write_files
from chogori.deploy.formats.shell import script
from chogori.durable_files import disk_errors
from chogori.errors import ConfigError, DeploymentError

POLL_S = 0.5
REQUEST_TIMEOUT_S = 5.0
LOG_TAIL_LINES = 20
ENGINE_LOG = "engine.log"


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """How a deployment is started here."""

    folder: Path
    """Where the script and the log of the engine are kept."""
    start_timeout_s: float = 3600.0
    """How long the engine may take until it answers."""
    stop_timeout_s: float = 60.0
    """How long each process may take to stop before it is killed."""
    access: Access | None = None
    """Whom the gateway answers at the loopback address; None for its own choice there, which is everybody."""
    gateway_program: tuple[str, ...] = (sys.executable, "-m", "chogori")
    """What `chogori` is here."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the start is."""

    elapsed_s: float
    last_line: str
    """Of the engine's log."""


def launch(
    deployment: Deployment,
    settings: LaunchSettings,
    on_progress: Callable[[Progress], None],
    on_ready: Callable[[], None],
) -> int:
    """Start engine and gateway here, and wait until one of them ends or Ctrl-C or SIGTERM stops both.

    `on_progress` is called about twice a second until the engine answers, then `on_ready` once. Returns the gateway's
    exit status, 0 after Ctrl-C.

    Raises ConfigError for a deployment over several nodes, and DeploymentError when the engine is not installed, its
    port is taken, it ends, or it does not answer in time.
    """
    plan = deployment.plan
    if plan.machine.num_nodes > 1:
        raise ConfigError(
            f"launch starts what fits one node, and this plan has {plan.machine.num_nodes}; write the files with --out "
            "and start each node's there"
        )
    command = deployment.fleet.groups[0].command(Place(rank=0))
    assert command is not None, "the first node always runs something"
    check_installed(plan.engine, command)
    port = deployment.fleet.port
    _check_free(port)
    text = script(deployment, deployment.title, command)
    write_files([File(name="engine.sh", content=text, executable=True)], settings.folder)
    health = f"http://{LOOPBACK}:{port}{plan.engine.health_path}"
    with _termination_as_interrupt(), contextlib.suppress(KeyboardInterrupt), ExitStack() as running:
        log = running.enter_context(_open_log(settings.folder / ENGINE_LOG))
        engine = Supervised(["bash", str(settings.folder / "engine.sh")], log)
        running.callback(engine.stop, settings.stop_timeout_s)
        _wait_until_ready(engine, health, settings, on_progress)
        on_ready()
        gateway = Supervised([*settings.gateway_program, *_gateway_words(deployment, settings)], None)
        running.callback(gateway.stop, settings.stop_timeout_s)
        while gateway.status() is None:
            if engine.status() is not None:
                raise _ended(engine, settings, "while it served")
            time.sleep(POLL_S)
        return gateway.status() or 0
    return 0


def check_installed(engine: Engine, command: Command) -> None:
    """Raise DeploymentError, with the command that installs it, where `engine` is not found on PATH."""
    program = shutil.which(engine.program)
    if program is None:
        missing = f"{engine.program} is not on PATH"
    elif engine.module is None:
        return
    else:
        probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({engine.module!r}) is None)"
        if subprocess.run([program, "-c", probe], stdin=subprocess.DEVNULL, check=False).returncode == 0:
            return
        missing = f"{program} has no module {engine.module}"
    raise DeploymentError(
        f"{engine.name} is not installed here: {missing}, and the plan is to run {' '.join(command.words[:4])} …; "
        f"install it with: {engine.installation}"
    )


class Supervised:
    """A process in a session of its own, so that a Ctrl-C in the terminal reaches it through us and in order."""

    def __init__(self, words: Sequence[str], log: IO[bytes] | None) -> None:
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log and subprocess.STDOUT, start_new_session=True
        )

    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def stop(self, timeout_s: float) -> None:
        """Ask the process and its children to end, and kill what is left after `timeout_s` seconds."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Engines leave workers behind when their parent dies early; the group outlives its leader.
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _wait_until_ready(
    engine: Supervised, health: str, settings: LaunchSettings, on_progress: Callable[[Progress], None]
) -> None:
    start = time.monotonic()
    with httpx.Client(timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
        while True:
            if engine.status() is not None:
                raise _ended(engine, settings, "before it answered")
            with contextlib.suppress(httpx.TransportError):
                if client.get(health).is_success:
                    return
            elapsed = time.monotonic() - start
            if elapsed > settings.start_timeout_s:
                raise DeploymentError(
                    f"the engine did not answer {health} within {settings.start_timeout_s:,.0f} s; its last words in "
                    f"{settings.folder / ENGINE_LOG}:\n{_tail(settings)}"
                )
            on_progress(Progress(elapsed_s=elapsed, last_line=_tail(settings, 1)))
            time.sleep(POLL_S)


def _gateway_words(deployment: Deployment, settings: LaunchSettings) -> tuple[str, ...]:
    url, context = f"http://{LOOPBACK}:{deployment.fleet.port}/v1", deployment.plan.request.context
    port = deployment.gateway_port
    return gateway_command(url, context, host=LOOPBACK, port=port, access=settings.access).words[1:]


def _ended(engine: Supervised, settings: LaunchSettings, when: str) -> DeploymentError:
    return DeploymentError(
        f"the engine ended with status {engine.status()} {when}; its last words in {settings.folder / ENGINE_LOG}:\n"
        f"{_tail(settings)}"
    )


def _tail(settings: LaunchSettings, num_lines: int = LOG_TAIL_LINES) -> str:
    with (settings.folder / ENGINE_LOG).open("rb") as file:
        # The end only: logs of engines grow to gigabytes.
        file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
        lines = deque(file.read().decode(errors="replace").splitlines(), maxlen=num_lines)
    return "\n".join(lines)


def _check_free(port: int) -> None:
    """A stranger at the engine's port would be taken for it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise DeploymentError(
                f"port {port} is meant for the engine and cannot be listened at: {error.strerror}; name another with "
                "--engine-port"
            ) from error


def _open_log(path: Path) -> IO[bytes]:
    with disk_errors(f"write {path}"):
        return path.open("wb")


@contextlib.contextmanager
def _termination_as_interrupt() -> Generator[None]:
    """SIGTERM ends what it wraps as Ctrl-C does, so that nothing is left running."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
