"""Responses as the OpenAPI document describes them. Answers are written by `chat_answer` and `text_answer`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorDetail


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these statuses."""
    return {status: {"model": Error} for status in statuses}


ANSWER_ERRORS = errors(400, 404, 413, 415, 429, 500, 502, 503, 504)


class CachedTokens(BaseModel):
    """Details of the prompt's tokens."""

    cached_tokens: int


class UsageReport(BaseModel):
    """Tokens consumed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    prompt_tokens_details: CachedTokens


class FunctionCall(BaseModel):
    """Which function, and its arguments as JSON text."""

    name: str
    arguments: str


class Call(BaseModel):
    """A tool call."""

    id: str
    type: Literal["function", "builtin_function"]
    function: FunctionCall


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[Call] | None = None


class AlternativeToken(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ProducedToken(AlternativeToken):
    """A produced token with the likeliest ones."""

    top_logprobs: list[AlternativeToken]


class ChatLogprobs(BaseModel):
    """Log-probabilities of the content."""

    content: list[ProducedToken]
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """A whole answer of chat completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageReport


class TextLogprobs(BaseModel):
    """Log-probabilities of a completion, in lists of equal length; null for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(BaseModel):
    """A whole answer of completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageReport


class TokenCount(BaseModel):
    """Tokens of a prompt."""

    total_tokens: int


class TokenEstimate(BaseModel):
    """Moonshot's wrapping of a token count."""

    data: TokenCount


class ModelObject(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int | None
    """Tokens of prompt and answer together; null where nobody says."""
    display_name: str | None = None
    """Only where a licence asks that the model's own name be shown."""
    licence: str | None = None


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class FileObject(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    """Uploaded files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
