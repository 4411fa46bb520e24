"""What went wrong with a request, in HTTP's terms; each API writes it in its own shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from chogori.errors import (
    BackendError,
    BackendTimeoutError,
    ChogoriError,
    ContextLengthError,
    DatabaseError,
    OverloadedError,
    PinLimitError,
    RequestError,
)
from chogori.serve.invalid_parameter import invalid_parameter, unreadable_body

logger = logging.getLogger(__name__)


class ApiError(ChogoriError):
    """An answer that is an error. `field` is the parameter at fault, `code` a word for programs."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        field: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.field = field
        self.code = code
        self.headers = dict(headers or {})


def api_error_of(error: Exception) -> ApiError:
    """The answer to any exception. One that nobody expected is logged, and says nothing of our insides."""
    reason = unreadable_body(error)
    if reason is not None:
        message = f"We could not parse the JSON body of your request: {reason}"
        return ApiError(message, status=400, code="invalid_json")
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return ApiError(str(error), status=400, field=error.field or "messages", code="context_length_exceeded")
        case RequestError():
            return ApiError(str(error), status=400, field=error.field)
        case OverloadedError():
            retry_after = {"retry-after": str(max(1, round(error.retry_after_s)))}
            return ApiError(str(error), status=429, code="engine_overloaded", headers=retry_after)
        case PinLimitError():
            return ApiError(str(error), status=429, code="cache_full")
        case DatabaseError():
            logger.error("%s", error)  # where the database is, is nobody's business
            return ApiError(
                "keys and usage cannot be read or written at the moment, and nothing is served unmetered",
                status=503,
                code="accounts_unavailable",
                headers={"retry-after": "5"},
            )
        case BackendTimeoutError():
            return ApiError(str(error), status=504, code="timeout")
        case BackendError():
            return ApiError(str(error), status=500 if error.status is None else 502, code="backend_failed")
        case RequestValidationError():
            found = invalid_parameter(error)
            return ApiError(found.message, status=400, field=found.field, code=found.code)
        case HTTPException():
            return ApiError(str(error.detail), status=error.status_code, headers=error.headers)
        case ChogoriError():
            logger.error("%s: %s", type(error).__name__, error)
            return ApiError(str(error), status=500)
        case _:
            logger.error("unexpected error while answering a request", exc_info=error)
            return ApiError("the server failed while answering; its log says why", status=500)
