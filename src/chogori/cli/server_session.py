"""A server in the foreground: says where it listens once it is ready, and stops on Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx
import uvicorn
from rich.console import Console

from chogori.errors import BackendError
from chogori.serve.app import create_app
from chogori.serve.backend import Backend
from chogori.serve.http_server import http_server
from chogori.serve.lifecycle import Lifecycle
from chogori.serve.settings import ServeSettings

POLL_S = 0.02
ONCE_TIMEOUT_S = 120.0


def serve(backend: Backend, settings: ServeSettings, *, once: bool) -> int:
    """Serve until SIGTERM or Ctrl-C, or with `once` for one request that is made here. Returns the exit status.

    Raises BackendError when the model cannot be started.
    """
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_session(backend, settings, once=once))
    return 0


async def _session(backend: Backend, settings: ServeSettings, *, once: bool) -> int:
    console = Console(highlight=False, soft_wrap=True)
    app = create_app(backend, settings)
    lifecycle: Lifecycle = app.state.lifecycle
    server = http_server(app, settings)
    serving = asyncio.create_task(server.serve())
    while not serving.done() and not (server.started and (lifecycle.ready or lifecycle.failed.is_set())):
        await asyncio.sleep(POLL_S)
    status = 0
    if server.started and lifecycle.ready and not serving.done():
        base_url = _base_url(server)
        _announce(console, base_url, backend)
        if once:
            status = await _request_once(console, base_url, backend.models[0].id)
            server.should_exit = True
    elif lifecycle.failed.is_set():
        server.should_exit = True
    await serving
    if lifecycle.failure is not None:
        raise lifecycle.failure
    if not server.started:
        raise BackendError(f"the server could not listen at {settings.host}:{settings.port}; is the port taken?")
    return status


def _base_url(server: uvicorn.Server) -> str:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(console: Console, base_url: str, backend: Backend) -> None:
    card = backend.models[0]
    console.print(f"[bold]{card.id}[/] is served at [bold]{base_url}[/], context {card.context_length:,} tokens")
    console.print(f"  OpenAI     {base_url}/v1")
    console.print(f"  Anthropic  {base_url}/anthropic")
    console.print(f"  {curl_line(base_url, card.id)}", markup=False)
    console.print("Ctrl-C stops it.")


def curl_line(base_url: str, model: str) -> str:
    """A request that can be pasted into a shell."""
    return f"curl {base_url}/v1/chat/completions -H 'content-type: application/json' -d '{json.dumps(_body(model))}'"


def _body(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40}


async def _request_once(console: Console, base_url: str, model: str) -> int:
    """Ask as a client does, over the network, and show the answer."""
    async with httpx.AsyncClient(timeout=ONCE_TIMEOUT_S, trust_env=False) as client:
        response = await client.post(f"{base_url}/v1/chat/completions", json=_body(model))
    console.print(f"\nHTTP {response.status_code}", style="green" if response.is_success else "red")
    console.print(json.dumps(response.json(), indent=2, ensure_ascii=False), markup=False)
    return 0 if response.is_success else 1
