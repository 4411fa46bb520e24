"""What an HTTP server's refusal means: a typed error, and whether asking again may help."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from chogori.errors import (
    BackendError,
    BackendTimeoutError,
    CompleterError,
    ContextLengthError,
    OverloadedError,
    RequestError,
)

DEFAULT_RETRY_AFTER_S = 1.0
"""What a caller is told to wait where an overloaded server does not say."""
MAX_QUOTED_CHARS = 500
"""Of a reply that is quoted in an error."""

_WRONG_REQUEST = (400, 413, 415, 422)
_QUOTA_WORDS = ("insufficient_quota", "exceeded_current_quota", "billing")
_LENGTH_WORDS = ("context_length_exceeded", "maximum context length", "context length", "token limit")


class HttpFailure(Exception):
    """A try that brought no answer. `error` is what a caller is to know; it never leaves the completer itself."""

    def __init__(self, error: CompleterError, *, may_pass: bool, retry_after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.may_pass = may_pass
        """Whether the same request may be answered later."""
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """What a server says of a request that it does not answer, in any of the shapes in use."""

    message: str
    code: str = ""
    """Its `type` and `code`, for telling kinds apart."""
    field: str | None = None
    """Its `param`."""
    status: int | None = None
    """Its `code`, where that is a number: vLLM's way to tell the status in the middle of a stream."""


def refusal_of(text: str) -> Refusal:
    """Read `{"error": {"message", "type", "code", "param"}}`, `{"error": TEXT}`, `{"detail": …}` or anything else."""
    try:
        reply = cast(object, json.loads(text))
    except ValueError:
        return Refusal(message=_shortened(text) or "an empty reply")
    fields = _fields(reply)
    if isinstance(fields.get("error"), str):
        return Refusal(message=_shortened(str(fields["error"])))
    error = _fields(fields.get("error", fields))
    message = next((error[name] for name in ("message", "detail", "error") if error.get(name)), reply)
    code, field = error.get("code"), error.get("param")
    return Refusal(
        message=_shortened(message if isinstance(message, str) else json.dumps(message, default=str)),
        code=f"{error.get('type') or ''} {code or ''}".strip(),
        field=field if isinstance(field, str) else None,
        status=code if isinstance(code, int) else None,
    )


def failure_of(refusal: Refusal, *, status: int | None, where: str, retry_after_s: float | None) -> HttpFailure:
    """The failure that a refusal with a status is. `where` names the server and model in its message."""
    text = f"{where} answered {status if status is not None else 'with an error'}: {refusal.message}"
    words = f"{refusal.code} {refusal.message}".lower()
    if status in _WRONG_REQUEST:
        if any(word in words for word in _LENGTH_WORDS):
            return HttpFailure(ContextLengthError(text, field=refusal.field), may_pass=False)
        return HttpFailure(RequestError(text, field=refusal.field), may_pass=False)
    if status == 404 and "model" in words:
        return HttpFailure(RequestError(text, field="model"), may_pass=False)
    if status == 429 and any(word in words for word in _QUOTA_WORDS):
        return HttpFailure(BackendError(text, status=status), may_pass=False)
    if status == 429 or (status == 503 and retry_after_s is not None):
        wait_s = DEFAULT_RETRY_AFTER_S if retry_after_s is None else retry_after_s
        return HttpFailure(OverloadedError(text, retry_after_s=wait_s), may_pass=True, retry_after_s=retry_after_s)
    if status in (408, 504):
        return HttpFailure(BackendTimeoutError(text), may_pass=True, retry_after_s=retry_after_s)
    may_pass = status is not None and status >= 500
    return HttpFailure(BackendError(text, status=status), may_pass=may_pass, retry_after_s=retry_after_s)


def _fields(value: object) -> Mapping[str, object]:
    return cast(Mapping[str, object], value) if isinstance(value, Mapping) else {}


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "…"
