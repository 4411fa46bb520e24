"""Errors as Anthropic writes them: their shape, their types and their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from fastapi.exceptions import RequestValidationError

from chogori.errors import ContextLengthError, OverloadedError
from chogori.serve.api_errors import ApiError, api_error_of
from chogori.serve.invalid_parameter import unreadable_body

OVERLOADED = 529
THREADS_UNSUPPORTED = "thread_unsupported_request"
"""By this code the official SDK's tool runner, which asks for a thread unasked, knows that it must do without."""
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def error_body(error: ApiError, request_id: str) -> dict[str, object]:
    """`{"type": "error", "error": {type, message}, "request_id"}`; `details` in `error` where a client needs them."""
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    words: dict[str, object] = {"type": kind, "message": error.message}
    if error.code == THREADS_UNSUPPORTED:
        words["details"] = {"error_code": error.code, "unsupported": ["thread"]}
    return {"type": "error", "error": words, "request_id": request_id}


def anthropic_error_of(error: Exception) -> ApiError:
    """The answer to any exception, with the statuses and the words that Anthropic's clients look for."""
    reason = unreadable_body(error)
    if reason is not None:
        return ApiError(f"The request body is not valid JSON: {reason}", status=400, code="invalid_json")
    match error:
        case RequestValidationError():
            return _validation_error(error)
        case ContextLengthError():
            # Claude Code compacts its conversation when it reads these words.
            return ApiError(f"prompt is too long: {error}", status=400, field=error.field)
        case OverloadedError():
            known = api_error_of(error)
            return ApiError(known.message, status=OVERLOADED, code=known.code, headers=known.headers)
        case _:
            return api_error_of(error)


def _validation_error(error: RequestValidationError) -> ApiError:
    first = cast(Sequence[Mapping[str, object]], error.errors())[0]
    location = cast(Sequence[str | int], first["loc"])
    # The alternatives of a union are named with spaces; only fields and types of blocks belong into a path.
    parts = [str(part) for part in location[1:] if isinstance(part, int) or " " not in part]
    field = ".".join(parts) or str(location[0])
    return ApiError(f"{field}: {first['msg']}", status=400, field=field)
