"""Whom the server lets in: every request has a caller, with the scope that its path needs and within its limits."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chogori.errors import DatabaseError
from chogori.serve.accounts import caller as callers
from chogori.serve.accounts.caller import ANYBODY, Caller
from chogori.serve.accounts.keys import KeyStore
from chogori.serve.accounts.rate_limits import RateLimits
from chogori.serve.api_errors import ApiError, api_error_of
from chogori.serve.envelope import RenderError

NEEDS_NO_KEY = frozenset({"/", "/health", "/ready", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""What says nothing but that a server is here, and how it is talked to."""
METRICS = "/metrics"
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")

Need = callers.Scope | Literal["any"]


class Gate:
    """Finds the caller of every request anew, so that a revoked key is refused from its next request on."""

    def __init__(
        self, app: ASGIApp, *, keys: KeyStore, keys_required: bool, limits: RateLimits, render_error: RenderError
    ) -> None:
        self._app = app
        self._keys = keys
        self._keys_required = keys_required
        self._limits = limits
        self._render_error = render_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        caller: Caller | None = None
        headers_sent = False

        async def send_limited(message: Message) -> None:
            nonlocal headers_sent
            if message["type"] == "http.response.start":
                headers_sent = True
                if caller is not None:
                    headers = MutableHeaders(scope=message)
                    for name, value in self._limits.headers(caller).items():
                        headers[name] = value
            await send(message)

        try:
            caller = await self._caller(scope, path)
            scope["chogori.caller"] = caller
            with self._limits.admitted(caller, is_charged=_is_charged(scope["method"], path)):
                await self._app(scope, receive, send_limited)
        except (ApiError, DatabaseError) as error:
            if headers_sent:
                raise
            response = self._render_error(Request(scope), api_error_of(error))
            await response(scope, receive, send_limited)

    async def _caller(self, scope: Scope, path: str) -> Caller:
        headers = Headers(scope=scope)
        if path in NEEDS_NO_KEY or (path == METRICS and _is_local(scope, headers)):
            return ANYBODY
        need = _need_of(path)
        if not self._keys_required and need != "admin":
            return ANYBODY
        key = _key_in(headers)
        if key is None:
            raise _refused(
                "no API key was sent; expected Authorization: Bearer sk-… (or x-api-key: sk-…), made by "
                "chogori keys create"
            )
        # A read of SQLite's file waits for nobody and takes less time than handing it to a thread.
        caller = self._keys.find(key) if self._keys.is_local else await asyncio.to_thread(self._keys.find, key)
        if caller is None:
            raise _refused("the API key is unknown, revoked or expired")
        if need != "any" and need not in caller.scopes:
            raise ApiError(
                f"{path} needs a key of scope {need}; this one has {', '.join(sorted(caller.scopes))}",
                status=403,
                code="insufficient_scope",
            )
        return caller


def _need_of(path: str) -> Need:
    if path == METRICS:
        return "admin"
    if path == "/v1/files" or path.startswith("/v1/files/"):
        return "files"
    if path == "/v1/caching" or path.startswith("/v1/caching/"):
        return "caching"
    if path.startswith(("/v1/models", "/anthropic/v1/models", "/v1/users/")):
        return "any"
    return "chat"


def _is_charged(method: str, path: str) -> bool:
    """Whether a request consumes tokens; asking for the balance or the models does not."""
    return method == "POST" and _need_of(path) in ("chat", "caching")


def _key_in(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key", "").strip() or None


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a request comes from this machine itself, not through a proxy on it."""
    client = scope.get("client")
    if client is None or any(name in headers for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _refused(message: str) -> ApiError:
    return ApiError(message, status=401, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
