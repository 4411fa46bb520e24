"""The engine's settings. Loads no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from chogori.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much the engine does at once."""

    max_running: int = 64
    """Answers that produce tokens or read their prompt at once; further ones wait."""
    max_waiting: int = 512
    """Answers that may wait; beyond it a request is refused at once (OverloadedError)."""
    cache_tokens: int = 65_536
    """Tokens in the latent cache, those of finished answers that are kept for reuse included; a multiple of
    `block_tokens`. An answer starts when there is room for its prompt and its most tokens, so that nothing that runs is
    ever put back."""
    block_tokens: int = 16
    """Tokens per block: what is shared and reused is a whole number of blocks."""
    prefill_chunk_tokens: int = 256
    """A prompt is read in pieces that end at multiples of this. A multiple of `block_tokens`."""
    step_tokens: int = 512
    """Prompt tokens read in one step beside the running answers, at most, but always one piece."""
    default_max_tokens: int = 2_048
    """Most tokens of an answer that names none; at most what the context has room for."""
    pinned_share: float = 0.5
    """Largest share of the cache that pinned prefixes (context caching) may hold. They are never evicted, so answers
    that are longer than what they leave are refused."""
    reuse_prefixes: bool = True
    """Whether the latents of earlier requests are reused where a prompt begins alike."""
    num_threads: int | None = None
    """Processor threads of the arithmetic; None for all cores but one, which the server needs."""

    @property
    def threads(self) -> int:
        """`num_threads`, or the number for this machine."""
        return self.num_threads or max(1, (os.cpu_count() or 2) - 1)

    def __post_init__(self) -> None:
        counts = "max_running max_waiting cache_tokens block_tokens prefill_chunk_tokens step_tokens default_max_tokens"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name} is {getattr(self, name)}; expected at least 1")
        if self.prefill_chunk_tokens % self.block_tokens:
            raise ConfigError(
                f"engine.prefill_chunk_tokens is {self.prefill_chunk_tokens}; expected a multiple of "
                f"engine.block_tokens = {self.block_tokens}"
            )
        if self.cache_tokens % self.block_tokens:
            raise ConfigError(
                f"engine.cache_tokens is {self.cache_tokens}; expected a multiple of engine.block_tokens = "
                f"{self.block_tokens}"
            )
        if not 0 <= self.pinned_share < 1:
            raise ConfigError(f"engine.pinned_share is {self.pinned_share}; expected at least 0 and less than 1")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"engine.num_threads is {self.num_threads}; expected at least 1, or None")
