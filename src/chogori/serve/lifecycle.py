"""A server's life: starting, ready or failed, and the requests that must end before its backend stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator

from chogori.serve.api_errors import ApiError
from chogori.serve.backend import Backend

logger = logging.getLogger(__name__)

CANCELLED_REQUESTS_END_S = 5.0
"""How long cancelled requests get to free what they hold. They need milliseconds; this bounds a fault."""


class Lifecycle:
    """Starts a backend beside a server that already listens, and stops it when the last request has ended."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._starting: asyncio.Task[None] | None = None
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.settled = asyncio.Event()
        """Set when the backend has started or could not."""

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        task = self._starting
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    @property
    def failure(self) -> BaseException | None:
        """Why the backend could not start."""
        task = self._starting
        return task.exception() if task is not None and task.done() and not task.cancelled() else None

    def start(self) -> None:
        """Begin to start the backend; returns at once."""
        self._starting = asyncio.create_task(self._backend.start(), name="start backend")
        self._starting.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("the model could not be started: %s", task.exception())
        self.settled.set()

    async def stop(self) -> None:
        """Stop the backend, once no request is running."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), CANCELLED_REQUESTS_END_S)
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._backend.stop()

    def require_ready(self) -> None:
        """Raise the 503 of a server whose model is not loaded yet."""
        if not self.ready:
            what = "could not be started" if self.failure is not None else "is still starting"
            raise ApiError(f"the model {what}", status=503, code="not_ready", headers={"retry-after": "1"})

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Count a request as running."""
        self._num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()
