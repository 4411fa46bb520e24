"""What the gateway adds to a call: the same streams from a server, directly and through `chogori serve` before it.

    python benchmarks/bench_gateway.py [--rounds 30]

The server is a program that sends a token every 20 ms, on loopback in a process of its own; so is the gateway, which
asks for a key, counts every token in SQLite before it sends it on, and checks tool calls. Streams go directly and
through the gateway in turn: one at a time, then 32 that are always under way, of which half call a tool.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measurement import print_rows, write_results

MODEL = "program"
TOKEN_S = 0.02
NUM_TOKENS = 25
STREAMS = 32
STREAMS_IN_TURN = 4
"""Of each of them, before the other way has its turn."""
MEDIAN_BAR_MS, P95_BAR_MS = 3.0, 10.0
CONTENT = re.compile(rb'"content": ?"[^"]')
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def frames(*, tools: bool) -> list[bytes]:
    """The events of an answer, each as one chunk of an HTTP body."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": "word "} for _ in range(NUM_TOKENS - 6 if tools else NUM_TOKENS)]
    if tools:
        call = {"index": 0, "id": "functions.get_weather:0", "type": "function"}
        deltas.append({"tool_calls": [{**call, "function": {"name": "get_weather", "arguments": ""}}]})
        pieces = ('{"city"', ': "', "Gilgit", '", "days"', ": 3}")
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces]
    ends = "tool_calls" if tools else "stop"
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": ends})
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
    usage = {"prompt_tokens": 9, "completion_tokens": NUM_TOKENS, "total_tokens": 9 + NUM_TOKENS}
    events = [json.dumps({**head, "choices": [choice]}) for choice in choices]
    events += [json.dumps({**head, "choices": [], "usage": usage}), "[DONE]"]
    return [b"%x\r\n%b\r\n" % (len(event) + 8, f"data: {event}\n\n".encode()) for event in events]


async def serve_program() -> None:
    """What the gateway stands before, in a process of its own: a model's tokens, at almost no cost of its own."""
    answers = {tools: frames(tools=tools) for tools in (False, True)}
    models = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}).encode()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"GET"):
                    found = head.startswith(b"GET /v1/models ")
                    status, content = (b"200 OK", models) if found else (b"404 Not Found", b"{}")
                    writer.write(
                        b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                        % (status, len(content), content)
                    )
                    continue
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for frame in answers[b'"tools"' in body]:
                    await asyncio.sleep(TOKEN_S)
                    writer.write(frame)
                writer.write(b"0\r\n\r\n")

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextmanager
def process(command: Sequence[str]) -> Generator[str]:
    """A server's process while the block runs; yields the address that it prints first."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                if found := re.search(r"http://[\d.]+:\d+", line):
                    yield found.group()
                    return
            raise RuntimeError(f"{command[0]} ended before it listened")
        finally:
            server.terminate()


class Client:
    """A connection that asks for streams, one after the other, at almost no cost of its own."""

    def __init__(self, address: str, key: str, *, tools: bool) -> None:
        self._host, _, port = address.removeprefix("http://").partition(":")
        self._port = int(port)
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Go."}], "stream": True}
        if tools:
            body["tools"] = [TOOL]
        content = json.dumps(body).encode()
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: %b\r\nauthorization: Bearer %b\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (self._host.encode(), key.encode(), len(content), content)
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def first_token_s(self) -> float:
        """Seconds to the first piece of text of one stream, which is read to its end."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        began, first_s, text = time.perf_counter(), None, b""
        writer.write(self._request)
        while not text.endswith(b"\r\n0\r\n\r\n"):
            data = await reader.read(65_536)
            text += data
            if first_s is None and CONTENT.search(text):
                first_s = time.perf_counter() - began
            if not data:
                break
        if not text.startswith(b"HTTP/1.1 200") or first_s is None or b"[DONE]" not in text:
            raise RuntimeError(f"no whole answer came: {text[-300:]!r}")
        return first_s

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def measure(direct: str, gateway: str, key: str, rounds: int) -> dict[str, Times]:
    """Times to the first token by both ways, taken in turns."""
    ways = {"direct": direct, "gateway": gateway}
    alone, many = Times(), Times()
    clients = {way: [Client(ways[way], key, tools=i % 2 == 1) for i in range(STREAMS)] for way in ways}

    async def stream(way: str, client: Client, delay_s: float, into: list[float]) -> None:
        """Again and again, beginning at a time of its own, so that 32 streams are always under way."""
        await asyncio.sleep(delay_s)
        for _ in range(STREAMS_IN_TURN):
            into.append(await client.first_token_s())

    for way in ways:  # connections and first imports are not what is compared
        await asyncio.gather(*(client.first_token_s() for client in clients[way]))
    for _ in range(rounds):
        for way in ways:
            alone.of(way).append(await clients[way][0].first_token_s())
    for _ in range(max(2, rounds // 10)):
        for way in ways:
            answer_s = NUM_TOKENS * TOKEN_S
            streams = (
                stream(way, client, answer_s * i / STREAMS, many.of(way)) for i, client in enumerate(clients[way])
            )
            await asyncio.gather(*streams)
    for client in itertools.chain(*clients.values()):
        client.close()
    return {"one stream": alone, f"{STREAMS} streams": many}


@dataclass
class Times:
    """Seconds to the first token."""

    direct: list[float] = field(default_factory=list[float])
    gateway: list[float] = field(default_factory=list[float])

    def of(self, way: str) -> list[float]:
        return self.gateway if way == "gateway" else self.direct

    def added_ms(self, share: int) -> float:
        """What the gateway adds to the time that `share` percent of the streams stay under."""
        return percentile_ms(self.gateway, share) - percentile_ms(self.direct, share)


def percentile_ms(times_s: Sequence[float], share: int) -> float:
    return 1000 * statistics.quantiles(times_s, n=100, method="inclusive")[share - 1]


def rows_of(load: str, times: Times) -> list[dict[str, object]]:
    """Rows of the result file: median, and what 5 and 95 percent stay under."""
    note = f"adds {times.added_ms(50):.1f} ms to the median, {times.added_ms(95):.1f} ms to the 95th percentile"
    return [
        {
            "name": f"{load}, {'through the gateway' if way == 'gateway' else 'directly'}",
            "ours": way == "gateway",
            "median": round(percentile_ms(times.of(way), 50), 1),
            "low": round(percentile_ms(times.of(way), 5), 1),
            "high": round(percentile_ms(times.of(way), 95), 1),
            **({"note": note} if way == "gateway" else {}),
        }
        for way in ("direct", "gateway")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--serve-program", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_program:
        with suppress(KeyboardInterrupt):
            asyncio.run(serve_program())
        return
    chogori = [sys.executable, "-m", "chogori"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        direct = stack.enter_context(process([sys.executable, __file__, "--serve-program"]))
        data = ["--data-dir", str(folder / "gateway")]
        made = subprocess.run([*chogori, "keys", "create", "bench", *data], check=True, capture_output=True, text=True)
        found = re.search(r"sk-[\w-]{20,}", made.stdout)
        assert found is not None, f"no key in {made.stdout!r}"
        serve = [*chogori, "serve", "--model", f"{direct}/v1", "--port", "0", "--require-keys", *data]
        gateway = stack.enter_context(process(serve))
        loads = asyncio.run(measure(direct, gateway, found.group(), arguments.rounds))
    rows = [row for load, times in loads.items() for row in rows_of(load, times)]
    print_rows(rows, "ms")
    alone, many = loads.values()
    for what, added, bar in (
        ("median, one stream", alone.added_ms(50), MEDIAN_BAR_MS),
        (f"95th percentile, {STREAMS} streams", many.added_ms(95), P95_BAR_MS),
    ):
        print(f"{what}: the gateway adds {added:.2f} ms; wanted {bar:g} at most: {'met' if added <= bar else 'MISSED'}")
    write_results(
        "gateway",
        title="Time to the first token through the gateway",
        command="python benchmarks/bench_gateway.py",
        unit="ms",
        rows=rows,
        note="Keys, metering in SQLite and checks of tool calls are on; client, gateway and server share the cores. "
        "Spread: 5th to 95th percentile.",
    )


if __name__ == "__main__":
    main()
