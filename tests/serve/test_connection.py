"""Event streams to clients that are slow, or wait long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from chogori.serve.connection import KEEP_ALIVE, EventStream


class Source:
    async def aclose(self) -> None:
        pass


def test_silence_is_bridged_by_comments() -> None:
    """A comment now and then while nothing comes, none while something does, and every frame whole."""

    async def run() -> list[bytes]:
        sent: list[bytes] = []

        async def frames() -> AsyncGenerator[bytes]:
            for _ in range(5):
                yield b"data: quick\n\n"
            while sent.count(KEEP_ALIVE) < 2:
                await asyncio.sleep(0.001)
            yield b"data: late\n\n"

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        async def receive() -> Any:
            await asyncio.Event().wait()

        await EventStream(frames(), Source(), keep_alive_s=0.02)({}, receive, send)
        await asyncio.sleep(0.05)
        return sent

    sent = asyncio.run(run())
    comments = sent.count(KEEP_ALIVE)
    assert comments >= 2
    assert sent == [b"", *[b"data: quick\n\n"] * 5, *[KEEP_ALIVE] * comments, b"data: late\n\n", b""]
