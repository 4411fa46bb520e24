"""One answer under way: what was asked, what it holds of the cache, what it has produced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from chogori.chat.completer import Sampling
from chogori.engine.constraints import Constraint
from chogori.engine.prefix_cache import Node
from chogori.engine.sampling import Likelihood, TokenSampler

EndReason = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRead:
    """The prompt is in the cache; the first token follows."""

    cached_tokens: int
    likelihoods: tuple[Likelihood, ...] = ()
    """Of each of the prompt's tokens but the first, where that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Produced:
    """One more token."""

    token: int
    likelihood: Likelihood | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """Nothing more comes. An end token that the model produced is not among the tokens produced, but is counted."""

    reason: EndReason
    num_tokens: int
    """Tokens that were produced, the end token included."""
    error: Exception | None = None
    end: Produced | None = None
    """The end token, where one came and log-probabilities were asked for."""


Output = PromptRead | Produced | Ended
Sink = Callable[[Output], None]
"""Receives outputs in the engine's thread; must return at once."""


@dataclass(kw_only=True, eq=False)
class Answer:
    """State of one answer. Only the engine's thread touches it, save for `cancelled`."""

    prompt: list[int]
    sampling: Sampling
    constraint: Constraint
    sampler: TokenSampler
    max_tokens: int
    """Most tokens to produce, within the context."""
    sink: Sink
    scores_prompt: bool = False
    """Whether the likelihoods of the prompt's tokens are wanted: all are read then, whatever is in the cache."""
    stays: bool = False
    """Whether it is a pinned prefix: it produces nothing, and holds the blocks of its prompt until it is cancelled."""
    cancelled: bool = False
    """Set by whoever no longer wants the answer."""

    ended: bool = False
    tokens: list[int] = field(default_factory=list[int])
    """Produced so far."""
    prompt_likelihoods: list[Likelihood] = field(default_factory=list[Likelihood])
    """Of the prompt's tokens but the first, as far as it is read and they are wanted."""
    num_computed: int = 0
    """Tokens, of prompt and answer, whose latents are in the cache."""
    num_exact: int = 0
    """Of those, how many at the beginning were computed as parts of a prompt."""
    cached_tokens: int = 0
    """Tokens of the prompt that were found in the cache."""
    path: list[Node] = field(default_factory=list[Node])
    """Blocks that the prefix tree knows, from the root; held."""
    blocks: list[int] = field(default_factory=list[int])
    """All blocks in order, those of `path` first."""
    findable: bool = True
    """Whether its further blocks may enter the prefix tree."""
    slots_S: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Cache row of each token, padded with row 0."""
    num_in_place: int = 0
    """Of these rows, how many from the first on lie side by side."""

    @property
    def reads_prompt(self) -> bool:
        """Whether some of the prompt has not been read."""
        return self.num_computed < len(self.prompt)

    @property
    def room(self) -> int:
        """Tokens that may still be produced."""
        return self.max_tokens - len(self.tokens)

    def token_range(self, start: int, stop: int) -> tuple[int, ...]:
        """Tokens of prompt and answer from `start` to `stop`."""
        boundary = len(self.prompt)
        if stop <= boundary:
            return tuple(self.prompt[start:stop])
        head = self.prompt[start:boundary] if start < boundary else []
        return (*head, *self.tokens[max(0, start - boundary) : stop - boundary])
