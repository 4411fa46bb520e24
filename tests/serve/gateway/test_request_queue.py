"""How many requests a server has at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from chogori.chat.completer import ChatRequest, Event, Finished, Started, TextRequest, Usage, complete
from chogori.chat.messages import Message
from chogori.errors import BackendError, OverloadedError
from chogori.serve.gateway.request_queue import RequestQueue

HELLO = ChatRequest(messages=[Message(role="user", content="hello")])


class Gate:
    """Answers when it is opened; notes how many requests it has at once."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.running = 0
        self.most = 0
        self.error: Exception | None = None

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield Started(prompt_tokens=1)
            await self.opened.wait()
            if self.error is not None:
                raise self.error
            yield Finished(reason="stop")
            yield Usage(prompt_tokens=1, completion_tokens=0)
        finally:
            self.running -= 1


def test_further_requests_wait_and_too_many_are_refused() -> None:
    async def run() -> None:
        gate = Gate()
        queue = RequestQueue(gate, max_running=2, max_waiting=3)
        tasks = [asyncio.create_task(complete(queue, HELLO)) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert (queue.running, queue.waiting) == (2, 3)
        with pytest.raises(OverloadedError, match="2 requests are being answered and 3 wait"):
            await complete(queue, HELLO)
        gate.opened.set()
        await asyncio.gather(*tasks)
        assert gate.most == 2
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(run())


def test_what_fails_or_is_cancelled_frees_its_place() -> None:
    async def run() -> None:
        gate = Gate()
        queue = RequestQueue(gate, max_running=1, max_waiting=3)
        tasks = [asyncio.create_task(complete(queue, HELLO)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in (tasks[1], tasks[0]):  # one that waits, one that runs
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        gate.error = BackendError("broke")
        gate.opened.set()
        with pytest.raises(BackendError, match="broke"):
            await tasks[2]
        gate.error = None
        assert (await complete(queue, HELLO)).choices[0].finish_reason == "stop"
        assert (queue.running, queue.waiting, gate.running) == (0, 0, 0)

    asyncio.run(run())
