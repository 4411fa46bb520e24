"""Log-probabilities in the two shapes of OpenAI: chat completions' list and completions' parallel lists."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ValidationError

from chogori.chat.completer import TokenLogprob
from chogori.errors import BackendError


def _empty_for_null(value: object) -> object:
    return [] if value is None else value


class _Alternative(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None

    @property
    def text(self) -> bytes:
        return self.token.encode("utf-8", "replace") if self.bytes is None else bytes(self.bytes)


class _Token(_Alternative):
    top_logprobs: Annotated[list[_Alternative], BeforeValidator(_empty_for_null)] = []


class _Logprobs(BaseModel):
    content: Annotated[list[_Token], BeforeValidator(_empty_for_null)] = []
    tokens: Annotated[list[str], BeforeValidator(_empty_for_null)] = []
    token_logprobs: Annotated[list[float | None], BeforeValidator(_empty_for_null)] = []
    top_logprobs: Annotated[list[dict[str, float] | None], BeforeValidator(_empty_for_null)] = []


def logprobs_of(value: object) -> tuple[TokenLogprob, ...]:
    """The tokens of a choice's `logprobs`. Raises BackendError for what is neither shape.

    Servers name tokens by their text, so no ids are known.
    """
    if value is None:
        return ()
    try:
        read = _Logprobs.model_validate(value)
        if read.content:
            return tuple(
                TokenLogprob(
                    token_id=None,
                    text=token.text,
                    logprob=token.logprob,
                    top=tuple((None, other.text, other.logprob) for other in token.top_logprobs),
                )
                for token in read.content
            )
        tops = read.top_logprobs or [None] * len(read.tokens)
        return tuple(
            TokenLogprob(
                token_id=None,
                text=token.encode("utf-8", "replace"),
                logprob=logprob,
                top=tuple((None, text.encode("utf-8", "replace"), other) for text, other in (top or {}).items()),
            )
            for token, logprob, top in zip(read.tokens, read.token_logprobs, tops, strict=True)
        )
    except (ValidationError, ValueError) as error:
        raise BackendError(f"the server's logprobs cannot be read: {error}") from error
