"""The bar of metering: five hundred streams, clients that leave, a server that is killed, every token accounted for.

The server is `chogori serve` itself in front of a program; the clients count what reaches them, byte by byte.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from chogori.chat.token_estimate import tokens_of_four_bytes
from chogori.serve.accounts.caller import KeyLimits
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.key_secret import key_secret
from chogori.serve.accounts.keys import KeyStore
from tests.serve.accounts.rows import Row, check_books, rows_of
from tests.serve.gateway.program_server import Body, running_program_server

NUM_STREAMS = 500
PATIENCE_S = 120.0
PIECE = "some"
"""One token by the count of servers that have no tokenizer: four bytes."""
_FRAME = re.compile(rb"data: (\{.*?\})\n\n")


@dataclass
class Client:
    """One request, and what of its answer arrived."""

    id: str
    num_pieces: int
    """Tokens of the whole answer."""
    streams: bool
    leaves_after: int | None
    """Frames after which it says that it wants no more, and takes what is still on its way; None to stay."""
    received: bytes = b""

    @property
    def is_done(self) -> bool:
        """Whether the whole answer arrived."""
        return (b"data: [DONE]\n\n" if self.streams else b'"finish_reason":"stop"') in self.received

    @property
    def num_tokens(self) -> int:
        """Tokens of the text that arrived."""
        if not self.streams:
            return self.num_pieces if self.is_done else 0
        frames = (json.loads(frame[1]) for frame in _FRAME.finditer(self.received))
        text = "".join(choice["delta"].get("content") or "" for frame in frames for choice in frame["choices"])
        return tokens_of_four_bytes(text)

    async def ask(self, port: int, key: str) -> None:
        """Send the request, and read until it leaves or the server ends the connection."""
        body = json.dumps({"messages": [{"role": "user", "content": f"{self.num_pieces}"}], "stream": self.streams})
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
            f"x-request-id: {self.id}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return  # the server is dead already
        try:
            writer.write((head + body).encode())
            while piece := await reader.read(65536):
                self.received += piece
                if self.leaves_after is not None and self.received.count(b"data: ") >= self.leaves_after:
                    self.leaves_after = None
                    writer.write_eof()
        except OSError:
            pass
        finally:
            writer.close()


def answer(path: str, body: Body) -> object:
    """The program: as many tokens as the prompt says, a few milliseconds apart."""
    assert path == "/v1/chat/completions"
    num_pieces = int(body["messages"][-1]["content"])
    usage = {"prompt_tokens": 7, "completion_tokens": num_pieces, "total_tokens": 7 + num_pieces}

    async def behave(request: Request) -> Response:
        async def frames() -> AsyncIterator[str]:
            for _ in range(num_pieces):
                yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': PIECE}}]})}\n\n"
                await asyncio.sleep(0.05)
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]})}\n\n"
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"

        if body.get("stream"):
            return StreamingResponse(frames(), media_type="text/event-stream")
        message = {"role": "assistant", "content": PIECE * num_pieces}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"choices": [choice], "usage": usage})

    return behave


@contextmanager
def served(model_url: str, database_url: str, folder: Path) -> Generator[tuple[subprocess.Popen[str], int]]:
    """`chogori serve` until the block ends, unless the block killed it; the process and its port."""
    command = [sys.executable, "-m", "chogori", "serve", "--model", model_url, "--port", "0", "--require-keys"]
    command += ["--database", database_url, "--data-dir", str(folder)]
    with (folder / "stderr.txt").open("a") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    with process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert "served" in words, (folder / "stderr.txt").read_text()
            yield process, httpx.URL(next(word for word in words if word.startswith("http")).rstrip(",")).port or 0
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE_S)
        finally:
            process.kill()


def test_what_clients_received_is_what_is_metered_through_kills_and_departures(
    url: str, database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    store = KeyStore(database, key_secret(folder))
    keys = [store.create(f"key {i}", scopes=["chat"], limits=KeyLimits()).secret for i in range(3)]
    dice = random.Random(0)
    clients = [
        Client(
            id=f"request-{i}",
            num_pieces=dice.randrange(5, 40),
            streams=i % 10 != 9,
            leaves_after=dice.randrange(1, 10) if i % 4 == 0 else None,
        )
        for i in range(NUM_STREAMS)
    ]

    async def ask_all(process: subprocess.Popen[str], port: int) -> None:
        asking = [asyncio.create_task(client.ask(port, keys[i % len(keys)])) for i, client in enumerate(clients)]
        while sum(client.is_done for client in clients) < NUM_STREAMS // 3:
            await asyncio.sleep(0.01)
        process.kill()
        await asyncio.gather(*asking)

    with running_program_server() as program:
        program.answer = answer  # pyright: ignore[reportAttributeAccessIssue]
        with served(program.url, url, folder) as (process, port):
            asyncio.run(asyncio.wait_for(ask_all(process, port), PATIENCE_S))
            assert process.wait(PATIENCE_S) == -signal.SIGKILL
        before = {row["id"]: row for row in check_books(database)}
        assert any(row["outcome"] is None for row in before.values()), "nothing ran when the server was killed"
        with served(program.url, url, folder):
            pass
    rows = check_books(database)
    assert {row["id"]: _tokens(row) for row in rows} == {row_id: _tokens(row) for row_id, row in before.items()}
    by_request = {row["request_id"]: row for row in rows}
    assert len(by_request) == len(rows), "a request has one row"
    for client in clients:
        _check(client, by_request.get(client.id))
    outcomes = [row["outcome"] for row in rows]
    assert {outcome: outcomes.count(outcome) > 0 for outcome in ("finished", "cancelled", "interrupted")} == {
        "finished": True,
        "cancelled": True,
        "interrupted": True,
    }
    assert set(outcomes) <= {"finished", "cancelled", "interrupted"}
    complaints = (folder / "stderr.txt").read_text()
    assert not any(key in complaints for key in keys)
    assert complaints == ""


def _tokens(row: Row) -> tuple[int, int, int]:
    return row["prompt_tokens"], row["completion_tokens"], row["cost"]


def _check(client: Client, row: Row | None) -> None:
    if row is None:
        assert client.num_tokens == 0, f"{client.id} received {client.num_tokens} tokens, and none are metered"
        return
    metered = row["completion_tokens"]
    if client.is_done:
        assert row["outcome"] == "finished"
        assert metered == client.num_tokens == client.num_pieces, client.id
    elif client.streams:
        assert client.num_tokens <= metered <= client.num_tokens + 1, (client.id, client.num_tokens, metered)
    else:
        # A whole answer is one event: counted at once, and perhaps on its way when the server died.
        assert metered in (0, client.num_pieces), client.id


@pytest.mark.parametrize("streams", [True, False])
def test_what_leaves_the_server_is_counted_before(tmp_path: Path, streams: bool) -> None:
    """The count that stands in the database when a client has a piece includes that piece."""
    folder = tmp_path / "data"
    url = f"sqlite:///{tmp_path}/accounts.sqlite"
    database = Database.open(url)
    key = KeyStore(database, key_secret(folder)).create("Ada", scopes=["chat"]).secret
    client = Client(id="one", num_pieces=8, streams=streams, leaves_after=None)

    async def watch(port: int) -> None:
        asking = asyncio.create_task(client.ask(port, key))
        while not asking.done():
            received = client.num_tokens
            rows = rows_of(database)
            assert received <= (rows[0]["completion_tokens"] if rows else 0)
            await asyncio.sleep(0.005)

    with running_program_server() as program:
        program.answer = answer  # pyright: ignore[reportAttributeAccessIssue]
        with served(program.url, url, folder) as (_, port):
            asyncio.run(asyncio.wait_for(watch(port), PATIENCE_S))
    assert client.is_done
    assert check_books(database)[0]["completion_tokens"] == 8
    database.close()
