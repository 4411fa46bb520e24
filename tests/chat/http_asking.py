"""Asking a server once, with waits that are known and not waited."""

from __future__ import annotations

import asyncio
import random

from chogori.chat.completer import ChatRequest, Event, TextRequest
from chogori.chat.http_completer import HttpCompleter
from chogori.chat.messages import Message
from chogori.errors import CompleterError
from tests.chat.misbehaving_server import MisbehavingServer

KEY = "sk-secret-0123456789"
HELLO = ChatRequest(messages=[Message(role="user", content="hello")])


class HalfwayRandom(random.Random):
    """Draws the middle, so that waits are known."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def ask(
    server: MisbehavingServer | str, request: ChatRequest | TextRequest = HELLO, *, slept: list[float] | None = None,
    **settings: object,
) -> tuple[list[Event], CompleterError | None]:  # fmt: skip
    """The events of an answer, and the error that ended it."""

    async def sleep(seconds: float) -> None:
        (slept if slept is not None else []).append(seconds)

    async def collect() -> tuple[list[Event], CompleterError | None]:
        told: list[Event] = []
        url = server if isinstance(server, str) else server.url
        kind = {
            "api_key": KEY,
            "sleep": sleep,
            "random_source": HalfwayRandom(),
            "clock": lambda: 1_000_000.0,
        } | settings
        async with HttpCompleter(url, "kimi-k2", **kind) as completer:  # pyright: ignore[reportArgumentType]
            try:
                async for event in completer.stream(request):
                    told.append(event)
            except CompleterError as error:
                return told, error
        return told, None

    return asyncio.run(collect())
