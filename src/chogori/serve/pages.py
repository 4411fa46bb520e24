"""The pages that the server shows to people: the start page, and the reference that is made from the document."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from string import Template

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from chogori.serve.backend import Backend, ModelCard
from chogori.serve.licence import KIMI_K2, LicenceSettings, name_headers
from chogori.serve.lifecycle import Lifecycle

router = APIRouter(include_in_schema=False)
_PAGE = resources.files("chogori.serve").joinpath("start_page.html").read_text(encoding="utf-8")
_STYLE = _PAGE.partition("<style>")[2].partition("</style>")[0]
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
SECURITY_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


ASK_FOR_A_KEY = "<p>This server asks for a key. With one, <code>GET /v1/models</code> lists them.</p>"
MODEL_TABLE = """<table>
<thead><tr><th scope="col">Name in requests</th><th scope="col" class="number">Context, tokens</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>"""


def title_of(licence: LicenceSettings, models: Sequence[ModelCard]) -> str:
    """What the server's pages and its document are called."""
    return f"{KIMI_K2} · Chogori" if licence.shows_name(models) else "Chogori"


@router.get("/")
async def start_page(request: Request) -> Response:
    """What is served, at which addresses."""
    licence, models = _licence(request), _models(request)
    lifecycle: Lifecycle = request.app.state.lifecycle
    origin = str(request.base_url).rstrip("/")
    state = "Answers requests." if lifecycle.ready else "The model is still starting, or could not be started."
    keys_required: bool = request.app.state.settings.require_keys
    page = Template(_PAGE).substitute(
        title=html.escape(title_of(licence, models)),
        name=f'<p class="model-name">{KIMI_K2}</p>' if licence.shows_name(models) else "",
        state=state,
        models=ASK_FOR_A_KEY if keys_required else _table(models),
        origin=html.escape(origin),
        curl=html.escape(_curl(origin, () if keys_required else models, keys_required=keys_required)),
    )
    return HTMLResponse(page, headers=SECURITY_HEADERS | name_headers(licence, models))


@router.get("/docs")
async def swagger(request: Request) -> Response:
    """The reference, to try requests in. Its scripts come from a public network, unlike the start page."""
    licence, models = _licence(request), _models(request)
    page = get_swagger_ui_html(openapi_url="openapi.json", title=title_of(licence, models))
    page.headers.update(name_headers(licence, models))
    return page


@router.get("/redoc")
async def redoc(request: Request) -> Response:
    """The reference, to read. Its scripts come from a public network, unlike the start page."""
    licence, models = _licence(request), _models(request)
    page = get_redoc_html(openapi_url="openapi.json", title=title_of(licence, models))
    page.headers.update(name_headers(licence, models))
    return page


def _context(card: ModelCard) -> str:
    return f"{card.context_length:,}" if card.context_length is not None else "unknown"


def _table(models: Sequence[ModelCard]) -> str:
    rows = [
        f'<tr><td><code>{html.escape(card.id)}</code></td><td class="number">{_context(card)}</td></tr>'
        for card in models
    ]
    return MODEL_TABLE.format(rows="\n".join(rows)) if rows else "<p>None yet.</p>"


def _curl(origin: str, models: Sequence[ModelCard], *, keys_required: bool) -> str:
    body = {
        "model": models[0].id if models else "MODEL",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 40,
    }
    key = ' -H "authorization: Bearer $CHOGORI_API_KEY"' if keys_required else ""
    return f"curl {origin}/v1/chat/completions{key} -H 'content-type: application/json' -d '{json.dumps(body)}'"


def _licence(request: Request) -> LicenceSettings:
    licence: LicenceSettings = request.app.state.settings.licence
    return licence


def _models(request: Request) -> Sequence[ModelCard]:
    backend: Backend = request.app.state.backend
    return backend.models
