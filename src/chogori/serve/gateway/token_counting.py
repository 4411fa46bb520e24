"""Counting a prompt's tokens for a model that runs elsewhere: by its tokenizer, by its server, or by an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import httpx

from chogori.chat.completer import ChatRequest
from chogori.chat.template import render
from chogori.chat.token_estimate import count_prompt_tokens, tokens_of_four_bytes
from chogori.errors import BackendError

if TYPE_CHECKING:
    from chogori.chat.tokenizer import Tokenizer

ESTIMATE_PATH = "/tokenizers/estimate-token-count"
"""Moonshot's, and our own."""
TIMEOUT_S = 30.0
_NOT_OFFERED = (404, 405, 501)


class PromptCounter:
    """Counts the tokens of prompts, exactly with the model's tokenizer, else as its server does where that offers it.

    Otherwise a token is counted for every four bytes. Calls block: they are made from a thread.
    """

    def __init__(
        self, base_url: str, model: str, *, headers: Mapping[str, str], tokenizer: Tokenizer | None = None
    ) -> None:
        self._url = base_url + ESTIMATE_PATH
        self._model = model
        self._tokenizer = tokenizer
        self._is_offered = True
        self._client = httpx.Client(headers=dict(headers), timeout=TIMEOUT_S)

    def count(self, request: ChatRequest) -> int:
        """Tokens of the rendered prompt. Raises BackendError where the server offers to count, and fails."""
        if self._tokenizer is not None:
            return len(
                render(request.messages, request.tools, tokenizer=self._tokenizer, add_generation_prompt=True).ids
            )
        told = self._ask(request) if self._is_offered else None
        return count_prompt_tokens(request, tokens_of_four_bytes) if told is None else told

    def count_text(self, text: str) -> int:
        """Tokens of a text by itself; asks nobody."""
        return tokens_of_four_bytes(text) if self._tokenizer is None else len(self._tokenizer.encode(text))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, request: ChatRequest) -> int | None:
        """What the server counts; None where it offers no count."""
        body: dict[str, object] = {
            "model": request.model or self._model,
            "messages": [message.to_openai() for message in request.messages],
        }
        if request.tools:
            body["tools"] = [tool.declaration for tool in request.tools]
        try:
            reply = self._client.post(self._url, json=body)
            if reply.status_code in _NOT_OFFERED:
                self._is_offered = False
                return None
            reply.raise_for_status()
            answer = cast(Mapping[str, Mapping[str, object]], reply.json())
            total = answer["data"]["total_tokens"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise BackendError(f"{self._url} did not count the tokens: {type(error).__name__}: {error}") from error
        if not isinstance(total, int) or total < 0:
            raise BackendError(f"{self._url} counted {total!r} tokens; expected a number of them")
        return total
