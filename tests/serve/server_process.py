"""`chogori serve` on random weights as a process of its own, and what of it can be seen from outside."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

PATIENCE_S = 60.0
"""Only a hang takes so long."""


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A server that listens at `host` and `port`."""

    process: subprocess.Popen[str]
    host: str
    port: int
    complaints: Path
    """What it writes to stderr."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def open_files(self) -> set[tuple[str, str]]:
        """Its descriptors and what they are of, which names each socket and pipe apart."""
        found: set[tuple[str, str]] = set()
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                found.add((entry.name, str(entry.readlink())))
        return found

    def num_threads(self) -> int:
        """Its threads of any kind."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def is_idle(self) -> bool:
        """Whether nothing runs, waits or holds a block of the cache."""
        lines = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S, trust_env=False).text.splitlines()
        held = ("requests_running", "requests_waiting", "cache_tokens_used")
        return sum(f"chogori_{name} 0.0" in lines for name in held) == len(held)


@contextmanager
def server_process(folder: Path, *options: str) -> Generator[ServerProcess]:
    """The server until the block ends, which it must leave by itself once it is told to, unless the block killed it."""
    command = [sys.executable, "-m", "chogori", "serve", "--model", "tiny:random", "--port", "0"]
    command += ["--data-dir", str(folder / "data"), "--engine.num-threads", "1", *options]
    complaints = folder / "stderr.txt"
    with complaints.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    with process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert "served" in words, complaints.read_text()
            address = httpx.URL(next(word for word in words if word.startswith("http")).rstrip(","))
            assert address.port is not None
            yield ServerProcess(process=process, host=address.host, port=address.port, complaints=complaints)
            if process.poll() == -signal.SIGKILL:
                return
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
            assert process.returncode in (0, -signal.SIGTERM), complaints.read_text()
        finally:
            process.kill()
