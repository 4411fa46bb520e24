"""Responses as the OpenAPI document describes them. Answers are written by `message_answer`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str
    details: dict[str, Any] | None = None


class AnthropicError(BaseModel):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these statuses."""
    return {status: {"model": AnthropicError} for status in statuses}


ANSWER_ERRORS = errors(400, 404, 413, 415, 500, 502, 503, 504, 529)


class MessageUsage(BaseModel):
    """Tokens consumed. The three kinds of input add up to the prompt."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnsweredText(BaseModel):
    """Text of the answer."""

    type: Literal["text"]
    text: str


class AnsweredToolUse(BaseModel):
    """A call."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class AnsweredMessage(BaseModel):
    """A whole answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredText | AnsweredToolUse]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """Tokens of a prompt."""

    input_tokens: int


class ModelInfo(BaseModel):
    """A served model."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: datetime
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None


class ModelPage(BaseModel):
    """A page of the list of models."""

    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None
