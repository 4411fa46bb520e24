"""A bound on how many requests a server has at a time, and on how many wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from chogori.chat.completer import ChatRequest, Completer, Event, TextRequest
from chogori.errors import OverloadedError

RETRY_AFTER_S = 1.0


class RequestQueue:
    """A Completer that asks the one within for so many answers at a time; further requests wait in order.

    Raises OverloadedError where too many wait already.
    """

    def __init__(self, completer: Completer, *, max_running: int, max_waiting: int) -> None:
        self._completer = completer
        self._slots = asyncio.Semaphore(max_running)
        self._max_waiting = max_waiting
        self.running = 0
        self.waiting = 0

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """The events of the Completer within, once it is this request's turn."""
        if self._slots.locked() and self.waiting >= self._max_waiting:
            raise OverloadedError(
                f"{self.running} requests are being answered and {self.waiting} wait; come again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            async with aclosing(cast(AsyncGenerator[Event], self._completer.stream(request))) as events:
                async for event in events:
                    yield event
        finally:
            self.running -= 1
            self._slots.release()
