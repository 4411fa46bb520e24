"""An OpenAI-shaped server on a real loopback socket, whose answers a program writes: what stands behind the gateway."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.chat.misbehaving_server import Behaviour, hanging, said

Body = dict[str, Any]
MODELS: Body = {"object": "list", "data": [{"id": "kimi-k2", "object": "model", "max_model_len": 131072}]}


@dataclass
class ProgramServer:
    """Answers chats and completions by `answer(path, body)`; `bodies` is what it was asked."""

    answer: Callable[[str, Body], Behaviour] = lambda path, body: said("Hi")
    models: object = field(default_factory=lambda: MODELS)
    models_status: int = 200
    counted_tokens: int | None = None
    """What it says of a prompt's tokens; None to offer no count."""
    url: str = ""
    bodies: list[Body] = field(default_factory=list[Body])
    headers: list[Mapping[str, str]] = field(default_factory=list[Mapping[str, str]])
    disconnected: threading.Event = field(default_factory=threading.Event)

    def reset(self, *script: Behaviour) -> None:
        """Answer the next requests by these, the last of them any further ones too; list the one model."""
        left = list(script)
        self.answer = lambda path, body: left.pop(0) if len(left) > 1 else left[0]
        self.bodies, self.headers = [], []
        self.models, self.models_status, self.counted_tokens = MODELS, 200, None
        self.disconnected.clear()

    def hang(self, *before: bytes) -> Behaviour:
        """Send some bytes, then nothing more until the client leaves."""
        return hanging(self.disconnected, *before)

    async def _answer(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.headers.append(dict(request.headers))
        self.bodies.append(body)
        return await self.answer(request.url.path, body)(request)

    async def _list(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        if isinstance(self.models, str):
            return Response(self.models, self.models_status)
        return JSONResponse(self.models, self.models_status)

    async def _count(self, request: Request) -> Response:
        if self.counted_tokens is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse({"data": {"total_tokens": self.counted_tokens}})


@contextlib.contextmanager
def running_program_server() -> Generator[ProgramServer]:
    """The server in a thread of its own, on a free port."""
    server = ProgramServer()
    app = Starlette(
        routes=[
            Route("/v1/models", server._list),
            Route("/v1/tokenizers/estimate-token-count", server._count, methods=["POST"]),
            Route("/v1/{path:path}", server._answer, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, name="program-server")
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        server.url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/v1"
        yield server
    finally:
        running.handle_exit(signal.SIGTERM, None)
        thread.join()
