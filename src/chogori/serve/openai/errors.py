"""Errors as OpenAI writes them."""

from __future__ import annotations

from chogori.serve.api_errors import ApiError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


_TYPES_BY_CODE = {
    "invalid_api_key": "invalid_authentication_error",
    "rate_limit_exceeded": "rate_limit_reached_error",
    "insufficient_quota": "exceeded_current_quota_error",
}
"""OpenAI's codes, and the types by which Moonshot's API says the same."""


def error_body(error: ApiError) -> dict[str, object]:
    """`{"error": {message, type, param, code}}`."""
    kind = "server_error" if error.status >= 500 else _TYPES.get(error.status, "invalid_request_error")
    kind = _TYPES_BY_CODE.get(error.code or "", kind)
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}}
