"""Any OpenAI-compatible server as the backend: vLLM, SGLang, KTransformers, llama.cpp, Moonshot's API, Chogori itself.

backend = HttpBackend("http://host:8001/v1", HttpBackendConfig(api_key_env="MOONSHOT_API_KEY"))
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx

from chogori.chat.completer import ChatRequest, Completer
from chogori.chat.http_completer import HttpCompleter
from chogori.chat.http_failure import refusal_of
from chogori.chat.retry_policy import RetryPolicy
from chogori.errors import BackendError, BackendTimeoutError, ConfigError
from chogori.serve.backend import Gauges, ModelCard
from chogori.serve.gateway.config import HttpBackendConfig, RepairConfig
from chogori.serve.gateway.model_list import cards_of
from chogori.serve.gateway.repairing import RepairingCompleter
from chogori.serve.gateway.request_queue import RequestQueue
from chogori.serve.gateway.token_counting import PromptCounter

if TYPE_CHECKING:
    from chogori.chat.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

POLL_S = 0.5
LIST_TIMEOUT_S = 10.0
PARTIAL_OWNERS = ("moonshot", "chogori")
"""Who owns, by their list of models, those of servers that know Moonshot's partial mode."""
_STARTING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of servers, and of what stands before them, that are still loading their model."""


class HttpBackend:
    """The models of one server, as the gateway's backend. Ready when the server lists them.

    Args:
        base_url: the address, commonly ending in `/v1`.
        config: how it is asked.
        repair: how far to go for a broken tool call.
        context_length: of models of which the server does not say it, in tokens.

    Raises ConfigError for an address that is none, or an environment variable without a key.
    """

    def __init__(
        self,
        base_url: str,
        config: HttpBackendConfig,
        *,
        repair: RepairConfig = RepairConfig(),  # noqa: B008 - frozen
        context_length: int | None = None,
    ) -> None:
        self._config = config
        self._repair = repair
        self._context_length = context_length
        self._key = _key_of(config.api_key_env)
        self._cards: tuple[ModelCard, ...] = ()
        self._queue: RequestQueue | None = None
        self._completer: RepairingCompleter | None = None
        self._counter: PromptCounter | None = None
        # Made here for what it refuses; its model is known once the server has listed its own.
        self._http = HttpCompleter(
            base_url,
            config.model or "",
            api_key=self._key,
            retries=RetryPolicy(max_retries=config.max_retries),
            connect_timeout_s=config.connect_timeout_s,
            first_token_timeout_s=config.first_token_timeout_s,
            between_tokens_timeout_s=config.between_tokens_timeout_s,
            limit_field=config.limit_field,
            sends_cache_key=config.sends_prompt_cache_key,
        )

    def __repr__(self) -> str:
        return f"HttpBackend({self._http.base_url!r})"

    @property
    def models(self) -> Sequence[ModelCard]:
        """The models served; none before `start` is done."""
        return self._cards

    @property
    def completer(self) -> Completer:
        """Raises BackendError before `start` is done."""
        if self._completer is None:
            raise BackendError(f"{self._http.base_url} has not answered yet")
        return self._completer

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of a prompt: exact with a tokenizer, else as the server counts, else estimated."""
        if self._counter is None:
            raise BackendError(f"{self._http.base_url} has not answered yet")
        return self._counter.count(request)

    def count_text(self, text: str) -> int:
        """Tokens of a text by itself: exact with a tokenizer, else estimated."""
        if self._counter is None:
            raise BackendError(f"{self._http.base_url} has not answered yet")
        return self._counter.count_text(text)

    def gauges(self) -> Gauges:
        """How many requests the server has, and how many wait here."""
        if self._queue is None:
            return Gauges()
        return Gauges(running=self._queue.running, waiting=self._queue.waiting)

    async def start(self) -> None:
        """Wait until the server lists its models. Raises BackendError for a server that refuses, or has not the model.

        Raises BackendTimeoutError for one that does not answer in `start_timeout_s`.
        """
        tokenizer = None if self._config.tokenizer is None else await asyncio.to_thread(self._load_tokenizer)
        self._cards = self._served(await self._list_models())
        self._http.model = self._cards[0].id
        self._counter = PromptCounter(
            self._http.base_url, self._cards[0].id, headers=self._headers, tokenizer=tokenizer
        )
        self._queue = RequestQueue(
            self._http, max_running=self._config.max_running, max_waiting=self._config.max_waiting
        )
        self._completer = RepairingCompleter(
            self._queue,
            self._repair,
            tokenizer=tokenizer,
            is_partial=any(card.owned_by in PARTIAL_OWNERS for card in self._cards),
        )

    async def stop(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        if self._counter is not None:
            self._counter.close()

    def _load_tokenizer(self) -> Tokenizer:
        # Lazily: two native libraries that a gateway without a tokenizer does not need.
        from chogori.chat.tokenizer import Tokenizer

        assert self._config.tokenizer is not None
        return Tokenizer.load(self._config.tokenizer)

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    def _served(self, listed: Sequence[ModelCard]) -> tuple[ModelCard, ...]:
        wanted = self._config.model
        chosen = [card for card in listed if wanted in (None, card.id)]
        if not chosen:
            names = ", ".join(card.id for card in listed)
            raise BackendError(f"{self._http.base_url} has no model {wanted!r}; it lists {names}")
        return tuple(replace(card, context_length=card.context_length or self._context_length) for card in chosen)

    async def _list_models(self) -> list[ModelCard]:
        url = f"{self._http.base_url}/models"
        deadline = asyncio.get_running_loop().time() + self._config.start_timeout_s
        has_warned = False
        async with httpx.AsyncClient(headers=self._headers, timeout=LIST_TIMEOUT_S) as client:
            while True:
                try:
                    reply = await client.get(url)
                    failure = f"HTTP {reply.status_code}"
                except httpx.TransportError as error:
                    reply, failure = None, f"{type(error).__name__}: {error}"
                if reply is not None and reply.status_code not in _STARTING:
                    return self._read_list(url, reply)
                if asyncio.get_running_loop().time() >= deadline:
                    raise BackendTimeoutError(
                        f"{url} did not list its models in {self._config.start_timeout_s:g} s ({failure}); is the "
                        "address right, and the server up?"
                    )
                if not has_warned:
                    logger.warning("waiting for %s (%s)", url, failure)
                    has_warned = True
                await asyncio.sleep(POLL_S)

    def _read_list(self, url: str, reply: httpx.Response) -> list[ModelCard]:
        if reply.status_code != 200:
            refusal = refusal_of(reply.text[:1000]).message
            said = refusal.replace(self._key, "[api key]") if self._key else refusal
            hint = {
                401: "; name the variable of its key by --backend.api-key-env",
                404: "; an OpenAI-compatible address commonly ends in /v1",
            }.get(reply.status_code, "")
            raise BackendError(f"{url} answered {reply.status_code}: {said}{hint}", status=reply.status_code)
        try:
            return cards_of(reply.json())
        except ValueError as error:
            raise BackendError(f"{url} did not answer in JSON; is it an OpenAI-compatible address?") from error
        except BackendError as error:
            raise BackendError(f"{url}: {error}") from error


def _key_of(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"backend.api_key_env names {variable}, which is not set; expected the server's key in it")
    return key
