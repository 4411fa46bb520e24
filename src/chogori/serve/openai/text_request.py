"""The body of `POST /v1/completions`, and the requests it asks for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from chogori.chat.completer import TextRequest
from chogori.errors import RequestError
from chogori.serve.openai.parameters import SamplingParameters, Whole

MAX_PROMPTS = 128
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions."""

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1), Whole]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = (
    str
    | TokenIds
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionRequest(SamplingParameters):
    """Texts to continue."""

    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] | None = Field(
        None, description="0 continues nothing: with `echo` and `logprobs` the prompt alone is scored."
    )
    prompt: Prompt = Field(description="A text, token ids, or a list of either.")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = Field(
        None, description="How many likeliest tokens to report; with `echo`, for the prompt's tokens too."
    )
    best_of: Annotated[int, Field(ge=1, le=128), Whole] | None = Field(None, description="Only the same as n.")
    suffix: str | None = Field(None, description="Not supported: K2 continues, it does not fill in.")

    def text_requests(self, *, model: str, request_id: str) -> list[TextRequest]:
        """What is asked of the Completer, one request for each prompt. Raises RequestError that names the parameter."""
        if self.suffix:
            raise RequestError("suffix is set; K2 continues text and cannot fill in before a suffix", field="suffix")
        num_choices = self.n or 1
        if self.best_of is not None and self.best_of != num_choices:
            raise RequestError(
                f"best_of is {self.best_of} and n is {num_choices}; expected the same, every answer is returned",
                field="best_of",
            )
        sampling = self.sampling(
            max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            default_temperature=1.0,
            logprobs=self.logprobs is not None,
            top_logprobs=self.logprobs or 0,
        )
        return [
            TextRequest(
                prompt=prompt, sampling=sampling, echo=self.echo is True, model=model, request_id=f"{request_id}-{i}"
            )
            for i, prompt in enumerate(self._prompts())
        ]

    def _prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [item for item in self.prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]
