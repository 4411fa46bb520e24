"""What keeps the beginning of conversations ready: an engine that pins it, or nothing but its messages."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from chogori.chat.completer import ChatRequest
from chogori.serve.backend import Backend


class PinnedPrefix(Protocol):
    """A beginning that is kept ready."""

    def release(self) -> None:
        """Let it go at once. Safe more than once."""
        ...


@runtime_checkable
class PrefixPinner(Protocol):
    """A backend that can keep the beginning of conversations, whatever else it must forget."""

    def count_prefix(self, request: ChatRequest) -> int:
        """Tokens that a request's messages and tools are at the beginning of a longer conversation."""
        ...

    async def pin_prefix(self, request: ChatRequest) -> PinnedPrefix:
        """Compute a beginning beside the answers under way, and keep it.

        Raises PinLimitError where there is no more room for it, OverloadedError where a later try may succeed.
        """
        ...


class ReplayedPrefixes:
    """The form for a model that runs elsewhere: each conversation is sent whole, and its server caches as it will."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def count_prefix(self, request: ChatRequest) -> int:
        """As the backend counts prompts: with the few tokens that begin an answer, where it counts those."""
        return self._backend.count_tokens(request)

    async def pin_prefix(self, request: ChatRequest) -> PinnedPrefix:
        """Nothing is sent ahead."""
        return _NothingKept()


class _NothingKept:
    def release(self) -> None:
        pass


def pinner_of(backend: Backend) -> PrefixPinner:
    """The backend itself where it pins, else what replays."""
    return backend if isinstance(backend, PrefixPinner) else ReplayedPrefixes(backend)
