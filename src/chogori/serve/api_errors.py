"""What went wrong with a request, in HTTP's terms; each API writes it in its own shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from chogori.errors import (
    BackendError,
    BackendTimeoutError,
    ChogoriError,
    ContextLengthError,
    OverloadedError,
    RequestError,
)

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
        case BackendTimeoutError():
            return ApiError(str(error), status=504, code="timeout")
        case BackendError():
            return ApiError(str(error), status=500 if error.status is None else 502, code="backend_failed")
        case RequestValidationError():
            return _validation_error(cast(Sequence[Mapping[str, object]], error.errors()))
        case HTTPException():
            return ApiError(str(error.detail), status=error.status_code, headers=error.headers)
        case ChogoriError():
            logger.error("%s: %s", type(error).__name__, error)
            return ApiError(str(error), status=500)
        case _:
            logger.error("unexpected error while answering a request", exc_info=error)
            return ApiError("the server failed while answering; its log says why", status=500)


def _validation_error(errors: Sequence[Mapping[str, object]]) -> ApiError:
    first = _location(errors[0])
    if errors[0]["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: at character {first[0]}", status=400, code="invalid_json")
    # Where a parameter may be of several types, each of them complains; who found the right type knows best.
    complaints = [error for error in errors if _location(error)[:1] == first[:1]]
    best = min(complaints, key=lambda error: str(error["type"]).endswith("_type"))
    where = path_of(_location(best))
    words = [str(error["msg"]) for error in complaints if path_of(_location(error)) == where and error is not best]
    message = " or: ".join(dict.fromkeys([str(best["msg"]), *words]))
    code = "missing_required_parameter" if best["type"] == "missing" else "invalid_value"
    return ApiError(f"{where or 'the request'}: {message}", status=400, field=where or None, code=code)


def _location(error: Mapping[str, object]) -> list[str | int]:
    parts = cast(Sequence[str | int], error["loc"])
    return list(parts[1:]) if parts and parts[0] in ("body", "query", "path") else list(parts)


def path_of(location: Sequence[str | int]) -> str:
    """`messages[0].content` of ("messages", 0, "content"), leaving out what only names an alternative of a union."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool") and not part[0].isupper():
            path += f".{part}" if path else part
    return path
