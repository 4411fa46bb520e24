"""Ten thousand malformed requests to the server over the real engine: refused in each API's words, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI

from chogori.chat.completer import ChatRequest, Completer, Event, TextRequest
from chogori.cli.local_model import LocalBackend
from chogori.serve.app import create_app
from chogori.serve.settings import ServeSettings
from tests.serve.hostile_requests import HostileRequest, hostile_requests
from tests.serve.local_engine import is_idle, local_backend

NUM_REQUESTS = 10_000
AT_ONCE = 24
ANSWERED_WITHIN_S = 60.0
"""What takes longer hangs. The slowest are prompts of thousands of tokens: some seconds, among 24 at once."""
GOOD = HostileRequest(path="/v1/chat/completions", body=b'{"messages": [{"role": "user", "content": "Hi"}]}')


class BriefCompleter:
    """The engine's answers, at most two tokens long: what is tested is the way to them."""

    def __init__(self, completer: Completer) -> None:
        self._completer = completer

    def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        sampling = dataclasses.replace(request.sampling, max_tokens=min(request.sampling.max_tokens or 2, 2))
        return self._completer.stream(dataclasses.replace(request, sampling=sampling))  # pyright: ignore


class BriefBackend:
    """The engine behind `BriefCompleter`."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self.models = backend.models
        self.count_tokens = backend.count_tokens
        self.gauges = backend.gauges
        self.start = backend.start
        self.stop = backend.stop

    @property
    def completer(self) -> Completer:
        return BriefCompleter(self._backend.completer)


@dataclasses.dataclass(kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


async def answer_to(app: FastAPI, request: HostileRequest) -> Answer | None:
    """Send a request as an HTTP server hands it to an application. None where nothing was answered."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": quote(request.path).encode(),
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    half = len(request.body) // 2
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": request.body[:half], "more_body": True}]
    if not request.leaves_early:
        messages.append({"type": "http.request", "body": request.body[half:], "more_body": False})
    answer = Answer(status=0, headers={}, body=b"")

    async def receive() -> dict[str, Any]:
        if not messages and not request.leaves_early:
            await asyncio.Event().wait()  # the client stays until it has its answer
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            answer.body += message["body"]

    await app(scope, receive, send)
    return answer if answer.status else None


def check(request: HostileRequest, answer: Answer | None) -> None:
    """No failure of the server's, and every refusal in the words of the API that was asked."""
    if answer is None:
        assert request.leaves_early, "no answer"
        return
    assert 200 <= answer.status < 500, answer.body
    if answer.status >= 400:
        check_error(request, answer)
    elif answer.headers.get("content-type", "").startswith("text/event-stream") and not request.leaves_early:
        end = b'"type":"message_stop"' if b"event: message_start" in answer.body else b"data: [DONE]"
        end = b"event: response." if b"event: response.created" in answer.body else end
        assert end in answer.body.rpartition(b"\n\n")[0].rpartition(b"\n\n")[2], answer.body
        assert b'"error":{' not in answer.body, answer.body


def check_error(request: HostileRequest, answer: Answer) -> None:
    body = json.loads(answer.body)
    error = body["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    if request.path.startswith(("/anthropic/", "/v1/messages")):
        assert set(body) == {"type", "error", "request_id"}
        assert (body["type"], body["request_id"]) == ("error", answer.headers["x-request-id"])
        kinds = {400: "invalid_request_error", 404: "not_found_error", 413: "request_too_large"}
        assert error["type"] == kinds.get(answer.status, "invalid_request_error")
    else:
        assert set(body) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"


@asynccontextmanager
async def running(app: FastAPI) -> AsyncGenerator[None]:
    """The application with its model loaded."""
    async with app.router.lifespan_context(app):
        await app.state.lifecycle.settled.wait()
        yield


def open_files() -> set[tuple[str, str]]:
    """Descriptors of the process and what they are of, which names each socket and pipe apart."""
    found: set[tuple[str, str]] = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor that lists the folder is gone by now
            found.add((entry.name, str(entry.readlink())))
    return found


async def until_idle(backend: LocalBackend) -> None:
    async with asyncio.timeout(30):
        while not is_idle(backend):
            await asyncio.sleep(0.005)


async def work(app: FastAPI, requests: Iterator[HostileRequest], statuses: Counter[int]) -> None:
    for request in requests:
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                answer = await answer_to(app, request)
            check(request, answer)
        except BaseException as error:
            shown = dataclasses.replace(request, body=request.body[:2_000])
            error.add_note(f"the request: {shown}")
            raise
        statuses[answer.status if answer else 0] += 1


# The parser closes the file of a part that ends, or that cannot be read; the file of a part that is cut off just goes.
@pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning")
def test_ten_thousand_malformed_requests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = local_backend()
    app = create_app(BriefBackend(backend), ServeSettings(data_dir=tmp_path))
    statuses: Counter[int] = Counter()

    async def flood() -> None:
        async with running(app):
            await work(app, itertools.islice(hostile_requests(0), 200), Counter())  # what is loaded once, is
            await until_idle(backend)
            num_tasks, files = len(asyncio.all_tasks()), open_files()
            requests = itertools.islice(hostile_requests(1), NUM_REQUESTS)
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work(app, requests, statuses))
            await until_idle(backend)
            answer = await answer_to(app, GOOD)
            assert answer is not None
            assert (answer.status, json.loads(answer.body)["usage"]["completion_tokens"]) == (200, 2)
            await until_idle(backend)
            assert len(asyncio.all_tasks()) == num_tasks
            # What earlier tests left to the collector may close meanwhile; what is new was opened here.
            assert open_files() - files == set()

    with caplog.at_level(logging.ERROR):
        asyncio.run(flood())
    assert [record.message for record in caplog.records] == []
    assert sum(statuses.values()) == NUM_REQUESTS
    # A fuzz that meets one guard only proves little.
    assert all(statuses[status] > 50 for status in (200, 400, 404, 405, 415)), statuses
