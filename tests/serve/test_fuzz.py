"""Ten thousand malformed requests over sockets to `chogori serve` on the real engine: refused, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import h11
import httpx
import pytest

from tests.serve.hostile_requests import BrokenExchange, HostileRequest, broken_exchanges, hostile_requests
from tests.serve.local_engine import eventually
from tests.serve.server_process import PATIENCE_S, ServerProcess, server_process

NUM_REQUESTS = 10_000
NUM_BROKEN = 1_000
AT_ONCE = 24
CHAT = "/v1/chat/completions"
USER: dict[str, Any] = {"role": "user", "content": "Hi"}
GOOD = HostileRequest(path=CHAT, body=json.dumps({"messages": [USER], "max_tokens": 2, "ignore_eos": True}).encode())
STREAM: dict[str, Any] = {
    "messages": [USER],
    "max_tokens": 600,
    "ignore_eos": True,
    "stream": True,
}
RESETS = struct.pack("ii", 1, 0)
"""SO_LINGER's value that ends a connection with a reset instead of a farewell."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    # Nothing a request asks for takes long: what is tested is the way to the engine.
    limits = ("--context-length", "768", "--engine.default-max-tokens", "2")
    with server_process(tmp_path_factory.mktemp("server"), *limits) as server:
        yield server
        written = server.complaints.read_text()
    assert "Traceback" not in written, written[-4_000:]
    assert "unexpected error" not in written, written[-4_000:]


@pytest.fixture(autouse=True)
def nothing_is_left(server: ServerProcess) -> Generator[None]:
    """After each test the next request works, and the server holds what it held before: no block, file or thread more.

    Threads of its two pools stay, at most one for each request that was ever under way at once.
    """
    assert works(server)
    files, num_threads = server.open_files(), server.num_threads()
    yield
    assert works(server)
    eventually(server.is_idle)
    eventually(lambda: server.open_files() <= files)
    assert server.num_threads() <= num_threads + 2 * AT_ONCE


def works(server: ServerProcess) -> bool:
    answer = httpx.post(server.url + CHAT, content=GOOD.body, headers=dict(GOOD.headers), timeout=PATIENCE_S)
    return (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 2)


# ---- a client that sends anything --------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One connection, opened anew for the next request when either side has closed it."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, data: bytes) -> None:
        """Write, as far as the server lets us."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._server.host, self._server.port)
            self._received = h11.Connection(h11.CLIENT)
        with contextlib.suppress(ConnectionError):  # a server may refuse what it has not read
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self, method: str = "POST") -> Answer | None:
        """The answer to a request that was sent. None where the connection ends without one."""
        # The parser of answers wants to know the request; ours are none that it would write.
        self._received.send(h11.Request(method=method, target="/", headers=[("host", "localhost")]))
        self._received.send(h11.EndOfMessage())
        answer = Answer(status=0, headers={}, body=b"")
        while True:
            event = self._received.next_event()
            match event:
                case h11.Response():
                    answer.status = event.status_code
                    answer.headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                case h11.Data():
                    answer.body += event.data
                case h11.EndOfMessage():
                    break
                case h11.NEED_DATA:
                    data = b""
                    with contextlib.suppress(ConnectionError):
                        data = await self._reader.read(65_536)
                    if not data and not answer.status:
                        self.leave()
                        return None
                    self._received.receive_data(data)
                case _:
                    pass
        if self._received.our_state is h11.DONE and self._received.their_state is h11.DONE:
            self._received.start_next_cycle()
        else:
            self.leave()
        return answer

    async def wait_for(self, text: bytes) -> None:
        """Read up to some text."""
        await self._reader.readuntil(text)

    async def rest(self) -> bytes:
        """All that still comes until the server ends the connection."""
        return await self._reader.read()

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection."""
        if self._writer is not None:
            if reset:
                self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
            self._writer.transport.abort()
            self._writer = None


@asynccontextmanager
async def connection_to(server: ServerProcess) -> AsyncGenerator[Connection]:
    connection = Connection(server)
    try:
        yield connection
    finally:
        connection.leave()


def check(path: str, answer: Answer) -> None:
    """No failure of the server's, and every refusal in the words of the API that was asked."""
    assert 200 <= answer.status < 500, answer.body
    if answer.status >= 400:
        check_error(path, answer)
    elif answer.headers.get("content-type", "").startswith("text/event-stream"):
        end = b'"type":"message_stop"' if b"event: message_start" in answer.body else b"data: [DONE]"
        end = b"event: response." if b"event: response.created" in answer.body else end
        assert end in answer.body.rpartition(b"\n\n")[0].rpartition(b"\n\n")[2], answer.body
        assert b'"error":{' not in answer.body, answer.body


def check_error(path: str, answer: Answer) -> None:
    body = json.loads(answer.body)
    error = body["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    if path.startswith(("/anthropic/", "/v1/messages")):
        assert set(body) == {"type", "error", "request_id"}
        assert (body["type"], body["request_id"]) == ("error", answer.headers["x-request-id"])
        kinds = {400: "invalid_request_error", 404: "not_found_error", 413: "request_too_large"}
        assert error["type"] == kinds.get(answer.status, "invalid_request_error")
    else:
        assert set(body) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"


def is_no_http(answer: Answer) -> bool:
    """Whether it is the refusal of what cannot be read as HTTP, and so is no API's."""
    return (answer.status, answer.body, answer.headers.get("connection")) == (
        400,
        b"Invalid HTTP request received.",
        "close",
    )


# ---- the flood ---------------------------------------------------------------------------------------------------


def shown(request: HostileRequest | BrokenExchange) -> str:
    """A request that went wrong, for the report."""
    sent = request.wire() if isinstance(request, HostileRequest) else request.sent
    return f"sent: {sent[:2_000]!r}"


async def send_all(
    server: ServerProcess, requests: Iterator[HostileRequest | BrokenExchange], statuses: Counter[str]
) -> None:
    """Send requests in turn, and count how each was answered."""
    async with connection_to(server) as shared:
        for request in requests:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    if isinstance(request, HostileRequest):
                        statuses[await sent_on(shared, request)] += 1
                    else:
                        async with connection_to(server) as own:
                            statuses[await broken_off(own, request)] += 1
            except BaseException as error:
                error.add_note(shown(request))
                raise


async def sent_on(connection: Connection, request: HostileRequest) -> str:
    await connection.send(request.wire())
    if request.leaves_early:
        connection.leave(reset=len(request.body) % 2 == 0)
        return "left"
    answer = await connection.answer(request.method)
    assert answer is not None, "no answer"
    assert is_no_http(answer) != request.is_http
    if request.method == "HEAD":
        assert (answer.status < 500, answer.body) == (True, b"")
    elif request.is_http:
        check(request.path, answer)
    return str(answer.status) if request.is_http else "no HTTP"


async def broken_off(connection: Connection, exchange: BrokenExchange) -> str:
    await connection.send(exchange.sent)
    if not exchange.is_answered:
        connection.leave(reset=len(exchange.sent) % 2 == 0)
        return "left"
    answer = await connection.answer()
    assert answer is not None, "no answer"
    if is_no_http(answer):
        return "no HTTP"
    check(exchange.path, answer)
    return str(answer.status)


def test_ten_thousand_malformed_requests(server: ServerProcess) -> None:
    statuses: Counter[str] = Counter()

    async def flood() -> None:
        bodies = itertools.islice(hostile_requests(1), NUM_REQUESTS - NUM_BROKEN)
        broken = itertools.islice(broken_exchanges(1), NUM_BROKEN)
        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                group.create_task(send_all(server, broken if number % 6 == 0 else bodies, statuses))

    asyncio.run(flood())
    assert statuses.total() == NUM_REQUESTS
    # A fuzz that meets one guard only proves little.
    assert all(statuses[status] > 50 for status in ("200", "400", "404", "405", "415", "no HTTP", "left")), statuses


# ---- floods, and clients that take their time --------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/files"])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "undeclared"])
def test_bodies_of_fifty_megabytes_are_refused(server: ServerProcess, path: str, chunked: bool) -> None:
    """An upload may be as large, but this one is none."""
    request = HostileRequest(path=path, body=b" " * 50_000_000, chunked=chunked)

    async def send() -> Answer | None:
        async with connection_to(server) as connection:
            await connection.send(request.wire())
            return await connection.answer()

    answer = asyncio.run(send())
    assert answer is not None
    assert answer.status == (400 if path == "/v1/files" else 413)
    check_error(path, answer)


def test_headers_without_end_are_refused_before_they_fill_the_memory(server: ServerProcess) -> None:
    async def flood() -> Answer | None:
        async with connection_to(server) as connection:
            await connection.send(b"GET /health HTTP/1.1\r\nhost: a\r\n")
            for _ in range(7):
                await connection.send(b"x: y\r\n" * 800)
                await asyncio.sleep(0.01)
            return await connection.answer("GET")

    answer = asyncio.run(flood())
    assert answer is not None
    assert is_no_http(answer)


def test_requests_sent_at_once_are_answered_in_order(server: ServerProcess) -> None:
    paths = ("/v1/models", "/v1/nothing", "/v1/models/tiny", "/anthropic/v1/nothing")

    async def ask() -> list[Answer | None]:
        async with connection_to(server) as connection:
            wires = [HostileRequest(method="GET", path=path, headers=[], body=b"").wire() for path in paths]
            await connection.send(b"".join(wires) + b"nonsense\r\n\r\n")
            return [await connection.answer("GET") for _ in range(len(paths) + 1)]

    *answers, last = asyncio.run(ask())
    assert [answer and answer.status for answer in answers] == [200, 404, 200, 404]
    assert last is not None
    assert is_no_http(last)


def test_a_body_that_breaks_after_its_refusal_ends_the_connection(server: ServerProcess) -> None:
    head = b"POST /v1/nothing HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"

    async def send() -> tuple[Answer | None, bytes]:
        async with connection_to(server) as connection:
            await connection.send(head)
            answer = await connection.answer()
            await connection.send(b"no size\r\n")
            return answer, await connection.rest()

    answer, rest = asyncio.run(send())
    assert answer is not None
    assert (answer.status, rest) == (404, b"")


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_clients_that_leave_in_the_middle_of_their_streams(server: ServerProcess, reset: bool) -> None:
    request = HostileRequest(path=CHAT, body=json.dumps(STREAM).encode())

    async def leave() -> None:
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(connection_to(server)) for _ in range(AT_ONCE)]
            for stream in streams:
                await stream.send(request.wire())
            for stream in streams:
                await stream.wait_for(b"chat.completion.chunk")
            assert not server.is_idle()
            for stream in streams:
                stream.leave(reset=reset)

    asyncio.run(leave())


def test_others_are_answered_while_clients_send_and_read_slowly(server: ServerProcess) -> None:
    whole = HostileRequest(path=CHAT, body=json.dumps({**STREAM, "max_tokens": 200}).encode())

    async def slow() -> Answer | None:
        async with connection_to(server) as connection:
            for byte in whole.wire():
                await connection.send(bytes([byte]))
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.5)
            return await connection.answer()

    async def all_at_once() -> list[Answer | None]:
        slow_ones = [asyncio.create_task(slow()) for _ in range(AT_ONCE)]
        while not all(task.done() for task in slow_ones):
            async with asyncio.timeout(PATIENCE_S), connection_to(server) as connection:
                await connection.send(GOOD.wire())
                answer = await connection.answer()
                assert answer is not None
                assert answer.status == 200
        return await asyncio.gather(*slow_ones)

    for answer in asyncio.run(all_at_once()):
        assert answer is not None
        assert answer.status == 200
        check(CHAT, answer)
