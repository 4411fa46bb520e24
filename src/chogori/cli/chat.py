"""`chogori chat`: a conversation in the terminal, with a model on this machine or at an OpenAI-compatible address."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, cast

import tyro
from rich.console import Console

from chogori.chat.completer import ChatRequest, Completer, ContentDelta, Event, Finished, Sampling, Usage
from chogori.chat.messages import Message
from chogori.cli.local_model import LocalBackend, ModelName
from chogori.engine.config import EngineConfig
from chogori.errors import BackendError, ChogoriError, ConfigError, RequestError

API_KEY_VARIABLE = "CHOGORI_API_KEY"
COMMANDS = "/new begins a new conversation, /system TEXT sets the system message, /quit or Ctrl-D ends"


@dataclass(frozen=True, kw_only=True)
class ChatArguments:
    """What `chogori chat` takes."""

    model: str = "runs/nano"
    """Folder of a run; a Hugging Face folder; a preset with random weights, such as tiny:random; or the address of an
    OpenAI-compatible API, such as http://127.0.0.1:8000/v1, whose key is read from CHOGORI_API_KEY."""
    name: str | None = None
    """Which model to ask for at an address; None for the first that it lists."""
    system: str | None = None
    """System message."""
    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """Answer this alone and end."""
    max_tokens: int = 400
    """Tokens of an answer at most."""
    temperature: float = 0.6
    """0 always takes the likeliest token. 0.6 is what Kimi K2 is meant for."""
    seed: int | None = None
    """One seed, one answer; None draws anew."""
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed)


def main(arguments: Sequence[str]) -> int:
    """Run `chogori chat` with `arguments` and return the exit status."""
    options = parse(arguments)
    if options.model.startswith(("http://", "https://")):
        return asyncio.run(_remote(options))
    if options.name is not None:
        raise ConfigError("name is for an address; a folder or preset holds one model")
    name = ModelName.parse(options.model)
    return asyncio.run(_local(options, LocalBackend(name, name.sizes(None), options.engine)))


def parse(arguments: Sequence[str]) -> ChatArguments:
    """Read `--model MODEL …`. Raises ConfigError or exits with status 2."""
    options = tyro.cli(
        ChatArguments, args=list(arguments), prog="chogori chat", description="Talk to a model in the terminal."
    )
    try:
        assert options.sampling
    except RequestError as error:
        raise ConfigError(str(error)) from None
    return options


async def _local(options: ChatArguments, backend: LocalBackend) -> int:
    await backend.start()
    try:
        return await _converse(options, backend.completer)
    finally:
        await backend.stop()


async def _remote(options: ChatArguments) -> int:
    # Lazily: a local model needs no HTTP client.
    from chogori.chat.http_completer import HttpCompleter

    key = os.environ.get(API_KEY_VARIABLE)
    name = options.name or await _first_model(options.model, key)
    async with HttpCompleter(options.model, name, api_key=key) as completer:
        return await _converse(options, completer)


async def _first_model(address: str, key: str | None) -> str:
    """The first model that an OpenAI-compatible API lists. Raises BackendError when it lists none."""
    import httpx

    url = f"{address.rstrip('/')}/models"
    try:
        async with httpx.AsyncClient(timeout=10) as client:
            response = await client.get(url, headers={"authorization": f"Bearer {key}"} if key else None)
        response.raise_for_status()
        return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BackendError(f"{url} lists no models ({error}); name one with --name, or correct the address") from error


async def _converse(options: ChatArguments, completer: Completer) -> int:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    opening = [Message(role="system", content=options.system)] if options.system else []
    if options.prompt is not None or not sys.stdin.isatty():
        text = options.prompt if options.prompt is not None else sys.stdin.read()
        await _answer(console, completer, [*opening, Message(role="user", content=text)], options)
        return 0
    importlib.import_module("readline")  # gives input() a line editor and a history
    console.print(COMMANDS, style="dim")
    messages = list(opening)
    while True:
        try:
            text = await asyncio.to_thread(input, "> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        match text.strip().split(maxsplit=1):
            case []:
                continue
            case ["/quit"]:
                return 0
            case ["/new"]:
                messages = list(opening)
                continue
            case ["/system", *rest]:
                opening = [Message(role="system", content=" ".join(rest))] if rest else []
                messages = list(opening)
                continue
            case [word, *_] if word.startswith("/"):
                console.print(f"{word} is no command: {COMMANDS}", style="red")
                continue
            case _:
                pass
        asked = [*messages, Message(role="user", content=text)]
        try:
            answer = await _answer(console, completer, asked, options)
        except ChogoriError as error:
            # The conversation stays as it was before the message.
            console.print(f"error: {error}", style="red")
        else:
            messages = [*asked, Message(role="assistant", content=answer)]


async def _answer(console: Console, completer: Completer, messages: list[Message], options: ChatArguments) -> str:
    """Show an answer as it is written; returns its text."""
    pieces: list[str] = []
    request = ChatRequest(messages=messages, sampling=options.sampling, model=options.name)
    async with aclosing(cast(AsyncGenerator[Event], completer.stream(request))) as events:
        async for event in events:
            match event:
                case ContentDelta():
                    pieces.append(event.text)
                    console.file.write(event.text)
                    console.file.flush()
                case Finished(reason="length"):
                    console.print(" … (max_tokens)", style="dim", end="")
                case Usage() if console.is_terminal:
                    cached = f", {event.cached_tokens} of them cached" if event.cached_tokens else ""
                    console.print(
                        f"\n{event.prompt_tokens} tokens read{cached}; {event.completion_tokens} written", style="dim"
                    )
                case _:
                    pass
    if not console.is_terminal:
        console.print()
    return "".join(pieces)
