"""A server in the foreground: says where it listens once it is ready, and stops on Ctrl-C."""

from __future__ import annotations

import json

import httpx
from rich.console import Console

from chogori.errors import ConfigError
from chogori.serve.app import create_app
from chogori.serve.backend import Backend, ModelCard
from chogori.serve.http_server import run
from chogori.serve.settings import ServeSettings

ONCE_TIMEOUT_S = 120.0


def serve(backend: Backend, settings: ServeSettings, *, once: bool) -> int:
    """Serve until SIGTERM or Ctrl-C, or with `once` for one request that is made here. Returns the exit status.

    Raises ConfigError when the port is taken or `once` would need a key, and what the backend raises when the model
    cannot be started.
    """
    if once and settings.require_keys:
        raise ConfigError("once asks without a key, and serve.require_keys is set; expected one of them")
    console = Console(highlight=False, soft_wrap=True)
    status = 0

    async def when_ready(address: str) -> bool:
        nonlocal status
        _announce(console, address, backend.models[0], settings)
        if once:
            status = await _request_once(console, address, backend.models[0].id)
        else:
            console.print("Ctrl-C stops it.", style="dim")
        return not once

    run(create_app(backend, settings), settings, when_ready)
    return status


def _announce(console: Console, address: str, card: ModelCard, settings: ServeSettings) -> None:
    context = "" if card.context_length is None else f", context {card.context_length:,} tokens"
    console.print(f"[bold]{card.id}[/] is served at [bold]{address}[/]{context}")
    console.print(f"  OpenAI     {address}/v1")
    console.print(f"  Anthropic  {address}/anthropic")
    console.print(f"  {curl_line(address, card.id, needs_key=settings.require_keys)}", markup=False)
    if settings.require_keys:
        console.print("  who has a key is answered; chogori keys create NAME makes one", style="dim")


def curl_line(address: str, model: str, *, needs_key: bool = False) -> str:
    """A request that can be pasted into a shell."""
    key = ' -H "authorization: Bearer $KEY"' if needs_key else ""
    body = json.dumps(_body(model))
    return f"curl {address}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'"


def _body(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40}


async def _request_once(console: Console, address: str, model: str) -> int:
    """Ask as a client does, over the network, and show the answer."""
    async with httpx.AsyncClient(timeout=ONCE_TIMEOUT_S, trust_env=False) as client:
        response = await client.post(f"{address}/v1/chat/completions", json=_body(model))
    console.print(f"\nHTTP {response.status_code}", style="green" if response.is_success else "red")
    console.print(json.dumps(response.json(), indent=2, ensure_ascii=False), markup=False)
    return 0 if response.is_success else 1
