"""What the server stands in front of: a Completer, and what its answers are called and counted in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from chogori.chat.completer import ChatRequest, Completer


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """A model as `/v1/models` lists it."""

    id: str
    created: int
    """Unix time in seconds."""
    owned_by: str
    context_length: int | None
    """Most tokens of prompt and answer together; None where nobody says."""
    has_kimi_k2_sizes: bool = False
    """Whether the model is known to be built like Kimi K2, whatever it is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauges:
    """The state of a backend, for metrics and readiness."""

    running: int = 0
    """Requests that are producing tokens or reading their prompt."""
    waiting: int = 0
    """Requests in the queue."""
    cache_tokens_used: int = 0
    cache_tokens_total: int = 0
    extra: Mapping[str, float] = field(default_factory=dict[str, float])


class Backend(Protocol):
    """One served model, or several behind one address."""

    @property
    def models(self) -> Sequence[ModelCard]:
        """At least one; the first answers requests that name none."""
        ...

    @property
    def completer(self) -> Completer: ...

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the rendered prompt, generation prompt included."""
        ...

    def count_text(self, text: str) -> int:
        """Tokens of a piece of an answer, by which answers are metered that end before their Usage says it.

        Called for every event of a stream, so it asks nobody.
        """
        ...

    def gauges(self) -> Gauges: ...

    async def start(self) -> None:
        """Make ready; the server answers `/ready` with 503 before this returns."""
        ...

    async def stop(self) -> None:
        """Free everything. No request is running any more."""
        ...
