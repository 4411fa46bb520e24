"""Settings of a backend by URL, and of what is done for its tool calls. No field holds a key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chogori.chat.openai_body import LimitField
from chogori.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HttpBackendConfig:
    """How a server at an address is asked."""

    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key; None for a server that asks for none."""
    model: str | None = None
    """The one model to serve; None for all that the server lists. The first answers requests that name none."""
    tokenizer: Path | None = None
    """Folder of the model's tokenizer, such as its Hugging Face folder: prompts are then counted exactly, and a call
    that was cut off is continued from where it ended."""
    limit_field: LimitField = "max_tokens"
    """What the server calls the token limit of an answer."""
    sends_prompt_cache_key: bool = False
    """Tell the server which context cache a conversation goes on from, by `prompt_cache_key`, which OpenAI's and
    Moonshot's know; others may refuse it."""
    start_timeout_s: float = 600.0
    """How long the server may take until it lists its models: engines load weights for minutes."""
    connect_timeout_s: float = 10.0
    first_token_timeout_s: float = 600.0
    """From the request to its first token, waiting in the server's own queue included."""
    between_tokens_timeout_s: float = 120.0
    max_retries: int = 2
    """Times that a request is sent again of which no answer has begun."""
    max_running: int = 512
    """Most requests, and so connections, that the server has at a time."""
    max_waiting: int = 1024
    """Most requests that wait here for their turn; further ones are answered with 429."""

    def __post_init__(self) -> None:
        for name in ("start_timeout_s", "connect_timeout_s", "first_token_timeout_s", "between_tokens_timeout_s"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "more than 0 seconds")
        _check("max_retries", self.max_retries, self.max_retries >= 0, "at least 0")
        _check("max_running", self.max_running, self.max_running >= 1, "at least 1")
        _check("max_waiting", self.max_waiting, self.max_waiting >= 0, "at least 0")


@dataclass(frozen=True, kw_only=True)
class RepairConfig:
    """How far the gateway goes for a call that only the model can put right."""

    max_rounds: int = 2
    """Times that the model is asked to continue a call or to make it again, for each broken call; 0 for never."""
    max_tokens: int = 8192
    """Tokens that all rounds of one request may produce. They count in its usage, and may exceed its token limit: half
    a call is of no use."""
    continuation: Literal["auto", "completions", "partial", "none"] = "auto"
    """How a call that was cut off is continued: by /v1/completions, for which `backend.tokenizer` is needed; in
    Moonshot's partial mode; or not, but made again. `auto`: by completions where there is a tokenizer, in partial mode
    with Moonshot's API, else not."""

    def __post_init__(self) -> None:
        if self.max_rounds < 0:
            raise ConfigError(f"repair.max_rounds is {self.max_rounds}; expected at least 0")
        if self.max_tokens < 1:
            raise ConfigError(f"repair.max_tokens is {self.max_tokens}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class ToolsConfig:
    """What is done with many tools, of which K2 is known to choose worse."""

    max_sent: int | None = None
    """Most tools that a request is sent with, the most relevant ones; None for all. Those that the conversation has
    used or that must be called are never left out. The header `x-chogori-tools: 12/87` says how many were sent."""

    def __post_init__(self) -> None:
        if self.max_sent is not None and self.max_sent < 1:
            raise ConfigError(f"tools.max_sent is {self.max_sent}; expected at least 1, or None for all")


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"backend.{name} is {value!r}; expected {expected}")
