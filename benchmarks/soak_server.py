"""The server under hostile load for a minute: nothing fails, nothing leaks, and what clients leave behind is freed.

    python benchmarks/soak_server.py [--seconds 60] [--streams 64] [--seed 0]

`chogori serve --model tiny:random` runs as a process of its own. Streams come and go, and some of their clients leave
at random or read slowly; beside them come bodies of 50 MB, floods of headers, uploads, and requests that are broken.
Then, on a quiet server, clients leave and /metrics is asked until the cache is free again: what is shown includes
that question and its answer. Exits with 1 on a 5xx, a broken stream, a server that died or hangs, or memory that grew
by more than a fifth. Memory is read from Linux's /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from measurement import machine

MAX_GROWTH = 0.20
WARM_UP_SHARE = 1 / 3
"""Of the seconds, as many before memory is read: shapes that arithmetic has not met take memory once."""
LARGE_BYTES = 50_000_000
LARGE_BODIES_EVERY_S = 1.0
LEAVING_TRIALS = 20
LONG_ANSWER_TOKENS = 800
"""Of clients that leave: 64 such answers, with their prompts, fit into the cache's 65,536 tokens."""
SAID_OF_FLOODS = "Invalid HTTP request received"
HANGS_AFTER_S = 60.0
CHAT = "/v1/chat/completions"
JSON_HEADERS = {"content-type": "application/json"}
FLOODS = (
    b"GET /health HTTP/1.1\r\n" + b"".join(b"x-flood-%d: %s\r\n" % (i, b"y" * 1_000) for i in range(1_000)) + b"\r\n",
    b"GET /health HTTP/1.1\r\nx-long: " + b"y" * 1_000_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00 no HTTP at all\r\n\r\n",
)


@dataclass
class Tally:
    """What the load met."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """For each kind of request, how often each status came; or in words what came instead."""
    first_token_s: list[float] = field(default_factory=list[float])
    failures: list[str] = field(default_factory=list[str])

    def count(self, kind: str, status: int | str) -> None:
        self.statuses.setdefault(kind, Counter())[str(status)] += 1
        if isinstance(status, int) and status >= 500:
            self.failures.append(f"{kind}: status {status}")

    @property
    def num_requests(self) -> int:
        return sum(sum(statuses.values()) for statuses in self.statuses.values())


@dataclass
class Load:
    """Clients of one server, until a time."""

    client: httpx.AsyncClient
    address: tuple[str, int]
    random: Random
    ends_at: float
    tally: Tally = field(default_factory=Tally)

    async def run(self, num_streams: int) -> None:
        """All clients at once."""
        others = [self.large_body, self.upload, self.flood, self.broken_request]
        async with asyncio.TaskGroup() as group:
            for request in [self.stream] * num_streams + others:
                group.create_task(self._repeat(request))

    async def _repeat(self, request: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < self.ends_at:
            try:
                async with asyncio.timeout(HANGS_AFTER_S):
                    await request()
            except (httpx.TransportError, TimeoutError) as error:
                self.tally.count(request.__name__, type(error).__name__)
                self.tally.failures.append(f"{request.__name__}: {error!r}")
                await asyncio.sleep(0.1)

    async def stream(self) -> None:
        """A conversation, by a client that stays, reads slowly, or leaves after some pieces."""
        manner = self.random.choices(("stays", "reads slowly", "leaves"), weights=(5, 2, 3))[0]
        patience = self.random.randrange(1, 40) if manner == "leaves" else None
        body = {**question(self.random, max_tokens=self.random.randrange(8, 64)), "stream": True}
        began, num_pieces, text = time.perf_counter(), 0, ""
        async with self.client.stream("POST", CHAT, json=body) as response:
            self.tally.count(f"stream, {manner}", response.status_code)
            async for piece in response.aiter_text():
                text += piece
                num_pieces += 1
                if num_pieces == 2:  # the first only names the role
                    self.tally.first_token_s.append(time.perf_counter() - began)
                if num_pieces == patience:
                    return
                if manner == "reads slowly":
                    await asyncio.sleep(0.1)
        if response.status_code == 200 and (not text.endswith("data: [DONE]\n\n") or '"error"' in text):
            self.tally.failures.append(f"a stream ended with {text[-200:]!r}")

    async def large_body(self) -> None:
        """50 MB where 32 are allowed, declared or not."""
        declared = self.random.random() < 0.5
        content = b" " * LARGE_BYTES if declared else pieces(LARGE_BYTES)
        response = await self.client.post(CHAT, content=content, headers=JSON_HEADERS)
        self.tally.count("50 MB body", response.status_code)
        await asyncio.sleep(LARGE_BODIES_EVERY_S)

    async def upload(self) -> None:
        """50 MB where 100 are allowed, and removed again."""
        files = {"file": ("a.txt", b"x" * LARGE_BYTES)}
        response = await self.client.post("/v1/files", files=files, data={"purpose": "batch"})
        self.tally.count("50 MB upload", response.status_code)
        response = await self.client.delete(f"/v1/files/{response.json()['id']}")
        self.tally.count("upload removed", response.status_code)
        await asyncio.sleep(LARGE_BODIES_EVERY_S)

    async def flood(self) -> None:
        """A head that is too long or no HTTP; the server answers and closes, perhaps before all is sent."""
        reader, writer = await asyncio.open_connection(*self.address)
        status: int | str = "closed"
        try:
            writer.write(self.random.choice(FLOODS))
            await writer.drain()
            status = int((await reader.readline()).split()[1])
        except (ConnectionError, IndexError):
            pass
        finally:
            writer.transport.abort()
        self.tally.count("head flood", status)
        await asyncio.sleep(0.02)

    async def broken_request(self) -> None:
        """A body that is cut, that is noise, or whose parameters are of wrong types."""
        body = json.dumps(question(self.random, max_tokens=2)).encode()
        wrong = {**question(self.random, max_tokens=2), "messages": self.random.choice((None, 7, [[]], [{"role": 0}]))}
        content = self.random.choice((
            body[: self.random.randrange(len(body))],
            self.random.randbytes(2_000),
            json.dumps(wrong).encode(),
            b"[" * 100_000,
        ))  # fmt: skip
        path = self.random.choice((CHAT, "/v1/completions", "/v1/responses", "/v1/messages"))
        response = await self.client.post(path, content=content, headers=JSON_HEADERS)
        self.tally.count("broken body", response.status_code)
        if response.status_code == 200:
            self.tally.failures.append(f"{path} took {content[:200]!r}")
        await asyncio.sleep(0.02)


def question(random: Random, *, max_tokens: int) -> dict[str, Any]:
    """A conversation whose beginning others share."""
    words = " ".join(str(random.randrange(1_000)) for _ in range(random.randrange(1, 60)))
    return {"messages": [{"role": "user", "content": f"Add these: {words}"}], "max_tokens": max_tokens}


async def pieces(num_bytes: int) -> AsyncGenerator[bytes]:
    """A body of undeclared length."""
    for _ in range(num_bytes // 100_000):
        yield b" " * 100_000


# ---- the server --------------------------------------------------------------------------------------------------


@contextmanager
def serving(folder: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The server as a process, and its address. What it complains of is shown at the end."""
    command = [sys.executable, "-m", "chogori", "serve", "--model", "tiny:random", "--context-length", "8192"]
    command += ["--port", "0", "--data-dir", str(folder / "data"), "--engine.num-threads", "1"]
    complaints = folder / "stderr.txt"
    with complaints.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if "served" not in words:
            raise SystemExit(f"the server did not start: {complaints.read_text()}")
        yield process, next(word for word in words if word.startswith("http")).rstrip(",")
        process.send_signal(signal.SIGTERM)
        process.wait(HANGS_AFTER_S)
    finally:
        process.kill()
        process.wait()
        lines = [line for line in complaints.read_text().splitlines() if SAID_OF_FLOODS not in line]
        print("".join(f"{line}\n" for line in lines[-40:]), end="", file=sys.stderr)


def resident_mb(process: subprocess.Popen[str]) -> float:
    """Memory of a process that is in the machine's."""
    line = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmRSS" in line)
    return int(line.split()[1]) / 1_000


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    """A figure of /metrics."""
    lines = (await client.get("/metrics")).text.splitlines()
    return float(next(line for line in lines if line.startswith(f"chogori_{name} ")).split()[1])


async def until_free(client: httpx.AsyncClient) -> float:
    """Seconds until nothing of the cache is held."""
    began = time.perf_counter()
    async with asyncio.timeout(HANGS_AFTER_S):
        while await gauge(client, "cache_tokens_used"):
            pass
    return time.perf_counter() - began


async def leave(client: httpx.AsyncClient, num_clients: int) -> float:
    """Seconds from the moment at which clients leave their streams until nothing of the cache is held."""
    body = {**question(Random(num_clients), max_tokens=LONG_ANSWER_TOKENS), "stream": True, "ignore_eos": True}
    async with AsyncExitStack() as streams:
        for _ in range(num_clients):
            response = await streams.enter_async_context(client.stream("POST", CHAT, json=body))
            streams.push_async_callback(response.aclose)
        assert await gauge(client, "cache_tokens_used") > 0
        began = time.perf_counter()
    await until_free(client)
    return time.perf_counter() - began


# ---- the run -----------------------------------------------------------------------------------------------------


async def soak(process: subprocess.Popen[str], address: str, options: argparse.Namespace) -> list[str]:
    """The whole run. Returns what failed."""
    url = httpx.URL(address)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=HANGS_AFTER_S, limits=limits, trust_env=False) as client:

        async def load(seconds: float, seed: int) -> Tally:
            place = (url.host, url.port or 80)
            load = Load(client, place, Random(seed), ends_at=time.monotonic() + seconds)
            await load.run(options.streams)
            await until_free(client)
            return load.tally

        start_mb = resident_mb(process)
        await load(options.seconds * WARM_UP_SHARE, options.seed + 1)
        before_mb = resident_mb(process)
        tally = await load(options.seconds, options.seed)
        after_mb = resident_mb(process)
        one = [await leave(client, 1) for _ in range(LEAVING_TRIALS)]
        all_s = await leave(client, options.streams)
        waiting = await gauge(client, "requests_running") + await gauge(client, "requests_waiting")
        last = await client.post(CHAT, json=question(Random(0), max_tokens=4))

    growth = after_mb / before_mb - 1
    failures = list(tally.failures)
    if growth > MAX_GROWTH:
        failures.append(f"memory grew by {growth:.0%}; allowed {MAX_GROWTH:.0%}")
    if waiting or last.status_code != 200 or process.poll() is not None:
        failures.append(f"afterwards {waiting:g} requests are open, and a question has status {last.status_code}")

    print(f"{machine()}; {options.streams} streams for {options.seconds:g} s, {tally.num_requests:,} requests")
    for kind, statuses in sorted(tally.statuses.items()):
        print(f"  {kind:22}" + ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items())))
    print(f"first token            {spread(tally.first_token_s)}")
    print(f"cache free, one leaves {spread(one)}")
    print(f"cache free, {options.streams} leave   {all_s * 1_000:.1f} ms")
    print(f"memory                 {before_mb:,.0f} MB before, {after_mb:,.0f} MB after: {growth:+.1%}")
    print(f"                       {start_mb:,.0f} MB before the first request")
    return failures


def spread(seconds: list[float]) -> str:
    """Median, 95th percentile and maximum in milliseconds."""
    ordered = sorted(seconds)
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    return f"median {statistics.median(ordered) * 1e3:.1f} ms, p95 {p95 * 1e3:.1f}, max {ordered[-1] * 1e3:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (process, address):
        try:
            failures = asyncio.run(soak(process, address, options))
        except (httpx.TransportError, TimeoutError) as error:
            state = "hangs" if process.poll() is None else f"died with status {process.returncode}"
            failures = [f"the server {state}: {error!r}"]
    for failure in failures[:20]:
        print(f"FAILED: {failure}")
    print("failures: " + (f"{len(failures)}" if failures else "none"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
