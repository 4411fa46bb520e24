"""The application: both APIs, health, readiness and metrics over one backend."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from chogori import __version__
from chogori.errors import ChogoriError
from chogori.serve import pages, probes
from chogori.serve.accounts import balance_api
from chogori.serve.accounts.database import Database, default_url
from chogori.serve.accounts.gate import Gate
from chogori.serve.accounts.key_secret import key_secret
from chogori.serve.accounts.keys import KeyStore
from chogori.serve.accounts.ledger import UsageLedger
from chogori.serve.accounts.prices import load_prices
from chogori.serve.accounts.rate_limits import RateLimits
from chogori.serve.anthropic import api as anthropic_api
from chogori.serve.anthropic.errors import error_body as anthropic_error_body
from chogori.serve.api_errors import ApiError, api_error_of
from chogori.serve.backend import Backend
from chogori.serve.caching import caching_api
from chogori.serve.caching.cache_use import EXPIRY_HEADER, ID_HEADER, SAVED_HEADER
from chogori.serve.caching.context_caching import context_caching
from chogori.serve.envelope import BodyLimit, Envelope, request_id
from chogori.serve.file_store import FileStore
from chogori.serve.licence import NAME_HEADER
from chogori.serve.lifecycle import Lifecycle
from chogori.serve.metrics import Metrics
from chogori.serve.openai import api as openai_api
from chogori.serve.openai.errors import error_body as openai_error_body
from chogori.serve.responses import api as responses_api
from chogori.serve.settings import ServeSettings

MULTIPART_OVERHEAD_BYTES = 64_000
LOOPBACK_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
"""Pages that this machine serves, on any port: the chat page under development, a notebook."""
EXPOSED_HEADERS = [
    "x-request-id",
    "openai-processing-ms",
    "x-chogori-ignored",
    "x-chogori-repairs",
    "x-chogori-tools",
    "retry-after",
    "request-id",
    *(ID_HEADER, SAVED_HEADER, EXPIRY_HEADER, NAME_HEADER),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]


def create_app(backend: Backend, settings: ServeSettings) -> FastAPI:
    """The server's application. Its lifespan starts and stops the backend and the ledger.

    Raises ConfigError, DatabaseError or StorageError where its files, keys, prices or usage cannot be had.
    """
    metrics = Metrics(backend)
    lifecycle = Lifecycle(backend)
    prices = load_prices(settings.data_folder, settings.prices)
    database = Database.open(settings.database or default_url(settings.data_folder))
    ledger = UsageLedger(database, prices)
    limits = RateLimits()
    caching = context_caching(backend, database, ledger, settings.caching)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await asyncio.to_thread(ledger.start)
        lifecycle.start()
        caching.keeper.start(lifecycle)
        yield
        await caching.keeper.stop()
        await lifecycle.stop()
        await asyncio.to_thread(ledger.stop)
        database.close()

    # The reference has pages of our own, which show the model's name where its licence asks for that.
    app = FastAPI(title="Chogori", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.openapi = functools.partial(_document, app)
    app.state.backend = backend
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.lifecycle = lifecycle
    app.state.files = FileStore(settings.data_folder / "files")
    app.state.database = database
    app.state.prices = prices
    app.state.ledger = ledger
    app.state.rate_limits = limits
    app.state.caching = caching
    app.state.fingerprint = _fingerprint(backend)

    app.include_router(pages.router)
    app.include_router(probes.router)
    app.include_router(openai_api.router)
    app.include_router(responses_api.router)
    app.include_router(anthropic_api.router)
    app.include_router(balance_api.router)
    app.include_router(caching_api.router)

    for kind in (ChogoriError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)

    def body_limit(path: str) -> int:
        is_upload = path.rstrip("/") == "/v1/files"
        return settings.max_file_bytes + MULTIPART_OVERHEAD_BYTES if is_upload else settings.max_body_bytes

    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, limit=body_limit, render_error=_render_error)
    app.add_middleware(
        Gate,
        keys=KeyStore(database, key_secret(settings.data_folder)),
        keys_required=settings.require_keys,
        limits=limits,
        render_error=_render_error,
    )
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_origin_regex=LOOPBACK_ORIGINS,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(Envelope, metrics=metrics, render_error=_render_error)
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the 422 that FastAPI writes everywhere: invalid requests are answered with 400."""
    document = FastAPI.openapi(app)
    document["info"]["title"] = pages.title_of(app.state.settings.licence, app.state.backend.models)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _fingerprint(backend: Backend) -> str:
    """OpenAI's `system_fingerprint`: as long as it stays, one seed gives one answer."""
    names = " ".join([__version__, *(f"{model.id} {model.created}" for model in backend.models)])
    return f"fp_{hashlib.sha256(names.encode()).hexdigest()[:10]}"


async def _answer_error(request: Request, error: Exception) -> Response:
    return _render_error(request, _in_openai_words(request, error))


def _in_openai_words(request: Request, error: Exception) -> ApiError:
    match error:
        case HTTPException(status_code=404):
            return ApiError(f"Invalid URL ({request.method} {request.url.path})", status=404, code="unknown_url")
        case HTTPException(status_code=405):
            message = f"Not allowed to {request.method} on {request.url.path}"
            return ApiError(message, status=405, code="method_not_supported", headers=error.headers)
        case _:
            return api_error_of(error)


def _render_error(request: Request, error: ApiError) -> Response:
    path = request.url.path
    if path.startswith(("/anthropic/", "/v1/messages")):
        headers = {**(error.headers or {}), "request-id": request_id(request)}
        return JSONResponse(anthropic_error_body(error, request_id(request)), error.status, headers)
    return JSONResponse(openai_error_body(error), error.status, error.headers)
