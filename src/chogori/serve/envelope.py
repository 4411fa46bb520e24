"""What every request and response wears: an id, the time it took, a limit on its body, an error instead of a crash."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Callable
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chogori.serve.api_errors import ApiError, api_error_of
from chogori.serve.metrics import Metrics

RenderError = Callable[[Request, ApiError], Response]
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_URL_CHARACTERS = "".join(map(chr, range(0x21, 0x7F)))
_LINGER_S = 5.0
_LINGER_BYTES = 256_000_000


def request_id(request: Request) -> str:
    """What this request is called in headers and logs."""
    return request.scope["chogori.request_id"]


class Envelope:
    """Names and times every request, counts every response, and turns what nobody caught into a 500."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, render_error: RenderError) -> None:
        self._app = app
        self._metrics = metrics
        self._render_error = render_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not scope["query_string"].isascii():
            # Some servers pass on what no URL may hold; reading the URL would fail then.
            scope["query_string"] = quote(scope["query_string"], safe=_URL_CHARACTERS).encode()
        asked_id = Headers(scope=scope).get("x-request-id", "")
        scope["chogori.request_id"] = asked_id if _SANE_ID.fullmatch(asked_id) else f"req_{uuid.uuid4().hex}"
        began = time.perf_counter()
        status: int | None = None

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = scope["chogori.request_id"]
                headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            failure = api_error_of(error)
            if status is not None:
                raise  # half an answer is out: only breaking the connection tells the client
            await self._render_error(Request(scope), failure)(scope, receive, send_named)
        finally:
            if status is not None:
                route = scope.get("route")
                self._metrics.count_response(getattr(route, "path", "unknown"), status)


class BodyLimit:
    """Refuses bodies that are too large: at once where their length is declared, else when they pass the limit."""

    def __init__(self, app: ASGIApp, *, limit: Callable[[str], int], render_error: RenderError) -> None:
        self._app = app
        self._limit = limit
        self._render_error = render_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared) > limit:
            response = self._render_error(Request(scope), _too_large(limit))
            await response(scope, receive, _lingering(receive, send))
            return
        num_bytes = 0
        started = False

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise _too_large(limit)
            return message

        async def send_unless_too_large(message: Message) -> None:
            # Whoever read the body may have made its own error of ours.
            nonlocal started
            if started or num_bytes <= limit:
                started = True
                await send(message)

        try:
            await self._app(scope, receive_limited, send_unless_too_large)
        except ApiError:
            if started or num_bytes <= limit:
                raise
        if num_bytes > limit and not started:
            response = self._render_error(Request(scope), _too_large(limit))
            await response(scope, receive, _lingering(receive, send))


def _too_large(limit: int) -> ApiError:
    message = f"the body is larger than {limit / 1e6:g} MB; expected at most that"
    return ApiError(message, status=413, code="request_too_large", headers={"connection": "close"})


def _lingering(receive: Receive, send: Send) -> Send:
    """A `send` whose response stays open while the client, who may not read before it has written, writes on.

    A connection that is closed with unread bytes is reset, and the reset can overtake the response.
    """

    async def discard() -> None:
        num_bytes = 0
        while num_bytes < _LINGER_BYTES:
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    async def send_lingering(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(discard(), _LINGER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_lingering
