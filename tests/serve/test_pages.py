"""The start page: what is served and where, without anything from elsewhere."""

import base64
import hashlib
import re

import httpx

from chogori.serve.backend import ModelCard
from tests.serve.conftest import Serve
from tests.serve.scripted_backend import ScriptedBackend


def test_the_start_page_says_what_is_served_and_where(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    page = httpx.get(server.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for words in ("kimi-test", "4,096", f"{server.url}/v1<", f"{server.url}/anthropic<", f"curl {server.url}/v1/chat"):
        assert words in page.text
    for link in re.findall(r'href="([^"]+)"', page.text):
        assert httpx.get(f"{server.url}/{link}").status_code == 200, link


def test_it_loads_nothing_and_runs_nothing_and_its_style_is_the_one_allowed(serve: Serve) -> None:
    page = httpx.get(serve(ScriptedBackend.saying("Hi")).url)
    assert "<script" not in page.text
    assert not re.search(r"(src|@import|url\()", page.text)
    style = page.text.partition("<style>")[2].partition("</style>")[0]
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = page.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{allowed}';")


def test_names_of_models_and_hosts_are_text(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    backend.models = [ModelCard(id="<b>$name&", created=1, owned_by="me", context_length=None)]
    page = httpx.get(serve(backend).url, headers={"host": 'evil"<i>.example'})
    assert "<b>" not in page.text
    assert "&lt;b&gt;$name&amp;" in page.text
    assert "<i>" not in page.text
    assert "unknown" in page.text


def test_where_keys_are_asked_for_the_page_names_no_model(serve: Serve) -> None:
    page = httpx.get(serve(ScriptedBackend.saying("Hi"), require_keys=True).url)
    assert "kimi-test" not in page.text
    assert "authorization: Bearer $CHOGORI_API_KEY" in page.text
