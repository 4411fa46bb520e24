"""What every endpoint of Anthropic's API has in common: the `request-id` header, and errors in Anthropic's shape."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from chogori.serve.anthropic.errors import anthropic_error_of, error_body
from chogori.serve.envelope import request_id


class AnthropicRoute(APIRoute):
    """A route whose failures keep Anthropic's statuses, 529 among them, which other APIs do not have."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler with its failures answered."""
        handle = super().get_route_handler()

        async def handle_or_refuse(request: Request) -> Response:
            try:
                response = await handle(request)
            except Exception as error:
                failure = anthropic_error_of(error)
                body = error_body(failure, request_id(request))
                response = JSONResponse(body, failure.status, failure.headers)
            response.headers["request-id"] = request_id(request)
            return response

        return handle_or_refuse
