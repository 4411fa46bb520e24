"""A real HTTP server on a loopback socket that answers each request as the test says: well, wrongly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Behaviour = Callable[[Request], Awaitable[Response]]


@dataclass
class MisbehavingServer:
    """Answers the first request by the first of `script`, and so on; its last answers all that follow."""

    url: str = ""
    script: list[Behaviour] = field(default_factory=list[Behaviour])
    bodies: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    headers: list[Mapping[str, str]] = field(default_factory=list[Mapping[str, str]])
    paths: list[str] = field(default_factory=list[str])
    disconnected: threading.Event = field(default_factory=threading.Event)
    """Set when a client left before a `hang` was over."""

    def reset(self, *script: Behaviour) -> None:
        self.script = list(script)
        self.bodies, self.headers, self.paths = [], [], []
        self.disconnected.clear()

    async def answer(self, request: Request) -> Response:
        self.bodies.append(json.loads(await request.body()))
        self.headers.append(dict(request.headers))
        self.paths.append(request.url.path)
        return await self.script[min(len(self.bodies), len(self.script)) - 1](request)

    def hang(self, *before: bytes) -> Behaviour:
        """Send some bytes, then nothing more until the client leaves."""
        return hanging(self.disconnected, *before)


def hanging(disconnected: threading.Event, *before: bytes) -> Behaviour:
    """Send some bytes, then nothing more until the client leaves, which sets `disconnected`."""

    async def behave(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                for piece in before:
                    yield piece
                while not await request.is_disconnected():
                    await asyncio.sleep(0.01)
            finally:
                disconnected.set()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    return behave


def chunk(delta: object = None, *, finish: str | None = None, choice: int = 0, **fields: object) -> dict[str, object]:
    """A chat completion chunk as OpenAI sends it."""
    value = {"index": choice, "delta": delta if delta is not None else {}, "finish_reason": finish, "logprobs": None}
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [value], **fields,
    }  # fmt: skip


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, object]:
    """The last chunk that `include_usage` asks for."""
    counts = {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": counts}


def events(*chunks: object, end: str = "\n\n", done: bool = True) -> bytes:
    """Chunks as server-sent events."""
    data = [json.dumps(value) for value in chunks] + (["[DONE]"] if done else [])
    return "".join(f"data: {text}{end}" for text in data).encode()


def stream(*pieces: bytes) -> Behaviour:
    """A reply whose body comes in these pieces."""

    async def behave(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return StreamingResponse(body(), media_type="text/event-stream")

    return behave


def die_after(*pieces: bytes) -> Behaviour:
    """A reply that breaks off with its connection."""

    async def behave(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece
            raise ConnectionAbortedError("on purpose")

        return StreamingResponse(body(), media_type="text/event-stream")

    return behave


def reply(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Behaviour:
    """A whole JSON reply; text is sent as it is."""

    async def behave(_: Request) -> Response:
        if isinstance(content, str):
            return Response(content, status_code=status, headers=headers, media_type="text/html")
        return JSONResponse(content, status_code=status, headers=headers)

    return behave


def said(text: str = "hello") -> Behaviour:
    """A good answer."""
    return stream(events(chunk({"role": "assistant", "content": text}), chunk(finish="stop"), usage(5, 2)))


def pieces_of(data: bytes, size: int) -> Sequence[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@contextlib.contextmanager
def running_server() -> Generator[MisbehavingServer]:
    """The server in a thread of its own, on a free port."""
    server = MisbehavingServer()
    app = Starlette(routes=[Route("/v1/{path:path}", server.answer, methods=["POST"])])
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, name="misbehaving-server")
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = running.servers[0].sockets[0].getsockname()[1]
        server.url = f"http://127.0.0.1:{port}/v1"
        yield server
    finally:
        running.handle_exit(signal.SIGTERM, None)
        thread.join()
