"""Parameters of OpenAI requests: what all of them share, which are known to have no effect, and which are unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from chogori.chat.completer import Sampling
from chogori.errors import RequestError
from chogori.serve.api_errors import ApiError
from chogori.serve.invalid_parameter import NO_TEXT, UnreadableBody

T = TypeVar("T")
IGNORED_HEADER = "x-chogori-ignored"
WITHOUT_EFFECT = frozenset({
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "thinking",
    "user",
    "verbosity",
})  # fmt: skip
"""Accepted and named in the `x-chogori-ignored` header: they change where or how fast a request runs, who is billed, or
how long a model thinks, and K2 does not think at length. Prefixes are cached without being told."""


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_integral)
"""Takes 3.0 for 3: the same number in JSON, and some clients write it so. Stands after the bounds, so that the document
keeps them."""
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1), Whole]
Stop = str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=5)]
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(json_schema_extra={"additionalProperties": False}),
]


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = Field(None, description="A last chunk with the usage and no choices.")
    include_obfuscation: bool | None = Field(None, description="Has no effect: chunks are never padded.")


class SamplingParameters(BaseModel):
    """How tokens are chosen: OpenAI's parameters, and as extras those of vLLM and SGLang."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, json_schema_extra={"additionalProperties": False}
    )

    model: str | None = Field(None, description="A served model or an alias; the first one when left out.")
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1), Whole] | None = Field(None, description="-1 or 0 for all tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: LogitBias | None = Field(None, description="Token ids, and what is added to their logits.")
    stop: Stop | None = Field(None, description="Up to 5 texts before which the answer ends.")
    seed: Annotated[int, Whole] | None = Field(None, description="Any whole number; taken modulo 2**63.")
    n: Annotated[int, Field(ge=1, le=128), Whole] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    ignore_eos: bool | None = Field(None, description="Go on after an end token, up to max_tokens; for measurements.")

    def sampling(
        self, *, max_tokens: int | None, default_temperature: float, logprobs: bool, top_logprobs: int
    ) -> Sampling:
        """The parameters as the Completer takes them; what is null has its default."""
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return Sampling(
            max_tokens=max_tokens,
            temperature=_or(self.temperature, default_temperature),
            top_p=_or(self.top_p, 1.0),
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            min_p=_or(self.min_p, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            stop=tuple(text for text in stop if text),
            seed=None if self.seed is None else self.seed % 2**63,  # what generators take
            num_choices=_or(self.n, 1),
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            ignore_eos=self.ignore_eos is True,
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage. Raises RequestError on options that make no sense."""
        if self.stream_options is None:
            return False
        if not self.stream:
            raise RequestError("stream_options is set, but stream is not true", field="stream_options")
        return self.stream_options.include_usage is True

    def ignored_headers(self) -> dict[str, str]:
        """The header that names the parameters without effect. Raises the error of unknown ones, in OpenAI's words."""
        extra: Mapping[str, object] = self.model_extra or {}
        given = [name for name, value in extra.items() if value is not None]
        for name in given:
            if name in ("functions", "function_call"):
                new_name = {"functions": "tools", "function_call": "tool_choice"}[name]
                raise RequestError(f"{name} is no longer supported; use {new_name}", field=name)
            if name not in WITHOUT_EFFECT:
                raise ApiError(
                    f"Unrecognized request argument supplied: {name}", status=400, field=name, code="unknown_parameter"
                )
        return {IGNORED_HEADER: ", ".join(sorted(given))} if given else {}


async def require_json(request: Request) -> None:
    """Refuse a body that is not JSON by its type (415), or not UTF-8 text by its bytes or escapes (400)."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        found = media_type or "missing"
        raise ApiError(f"the content-type is {found}; expected application/json", status=415, code="not_json")
    body = await request.body()
    try:
        body.decode("utf-8")
        if b"\\ud" in body.lower():  # half of a pair of escapes makes a string that is no text
            json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise UnreadableBody(NO_TEXT) from None
    except (ValueError, RecursionError):
        raise UnreadableBody("it is not JSON") from None


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
