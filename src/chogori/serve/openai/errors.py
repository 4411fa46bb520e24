"""Errors as OpenAI writes them."""

from __future__ import annotations

from chogori.serve.api_errors import ApiError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(error: ApiError) -> dict[str, object]:
    """`{"error": {message, type, param, code}}`."""
    kind = "server_error" if error.status >= 500 else _TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}}
