"""Whom a live server lets in, in the words of each API, by the official SDKs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import anthropic
import httpx
import openai
import pytest

from chogori.serve.accounts.caller import KeyLimits, Scope
from chogori.serve.accounts.database import Database
from chogori.serve.accounts.key_secret import key_secret
from chogori.serve.accounts.keys import KeyStore, NewKey
from tests.serve.accounts.rows import check_books
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import Reply, ScriptedBackend, ScriptedCompleter

CHAT = {"model": "kimi-test", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"content-type": "application/json"}
MESSAGE = {**CHAT, "max_tokens": 10}


class Keyed:
    """A live server that requires keys, and its keys as the command line would make them: by another connection."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        folder = server.settings.data_folder
        self.database = Database.open(f"sqlite:///{folder}/accounts.sqlite")
        self.keys = KeyStore(self.database, key_secret(folder))

    def new(self, *scopes: Scope, **options: object) -> NewKey:
        asked = scopes or ("chat", "files", "caching")
        return self.keys.create("Ada", scopes=asked, **options)  # pyright: ignore[reportArgumentType]

    def post(self, key: str | None, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        headers |= {"authorization": f"Bearer {key}"} if key is not None else {}
        body = MESSAGE if "messages" in path else CHAT
        return httpx.post(self.server.url + path, json=body, headers=headers, trust_env=False)

    def get(self, key: str | None, path: str, **headers: str) -> httpx.Response:
        headers |= {"x-api-key": key} if key is not None else {}
        return httpx.get(self.server.url + path, headers=headers, trust_env=False)

    def openai(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=key, max_retries=0)

    def anthropic(self, key: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=f"{self.server.url}/anthropic", api_key=key, max_retries=0)


Guard = Callable[..., Keyed]


@pytest.fixture
def guard(fresh_serve: Serve) -> Guard:
    """`guard(backend)` is a live server that requires keys."""

    def start(backend: ScriptedBackend | None = None, **settings: object) -> Keyed:
        return Keyed(fresh_serve(backend or ScriptedBackend.saying("Hi"), **{"require_keys": True, **settings}))

    return start


def test_a_key_opens_both_apis_and_nothing_else_does(guard: Guard) -> None:
    keyed = guard()
    made = keyed.new()
    with keyed.openai(made.secret) as client:
        answer = client.chat.completions.create(**CHAT)  # pyright: ignore
        assert answer.choices[0].message.content == "Hi"
    with keyed.anthropic(made.secret) as client:
        assert client.messages.create(**MESSAGE).content[0].text == "Hi"  # pyright: ignore
    with keyed.openai(made.secret[:-1]) as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.type == "invalid_authentication_error"
    assert caught.value.code == "invalid_api_key"
    with keyed.anthropic("sk-nonsense") as client, pytest.raises(anthropic.AuthenticationError) as refused:
        client.messages.create(**MESSAGE)  # pyright: ignore
    assert refused.value.body["error"]["type"] == "authentication_error"  # pyright: ignore
    rows = check_books(keyed.database)
    assert [(row["api"], row["key_id"], row["outcome"]) for row in rows] == [
        ("openai_chat", made.record.id, "finished"),
        ("anthropic_messages", made.record.id, "finished"),
    ]


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json", "/"])
def test_what_says_that_a_server_is_here_needs_no_key(guard: Guard, path: str) -> None:
    assert guard().get(None, path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/v1/users/me/balance", "/no/such/path", "/v1/caching"])
def test_everything_else_does(guard: Guard, path: str) -> None:
    refused = guard().get(None, path)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "no API key was sent" in refused.json()["error"]["message"]


def test_a_key_revoked_elsewhere_is_refused_by_the_next_request(guard: Guard) -> None:
    keyed = guard()
    made = keyed.new()
    assert keyed.post(made.secret).status_code == 200
    keyed.keys.revoke(made.record.id)
    assert keyed.post(made.secret).status_code == 401


def test_a_key_does_what_its_scopes_say(guard: Guard) -> None:
    keyed = guard()
    files = keyed.new("files").secret
    chat = keyed.new("chat").secret
    assert keyed.post(chat).status_code == 200
    refused = keyed.post(files)
    assert refused.status_code == 403
    assert refused.json()["error"]["message"] == "/v1/chat/completions needs a key of scope chat; this one has files"
    assert keyed.post(files, "/v1/messages").json()["error"]["type"] == "permission_error"
    assert keyed.get(chat, "/v1/files").status_code == 403
    assert keyed.get(files, "/v1/files").status_code == 200
    assert keyed.get(files, "/v1/models").status_code == 200


def test_a_key_sees_and_asks_its_models_only(guard: Guard) -> None:
    backend = ScriptedBackend.saying("Hi")
    backend.models = [*backend.models, replace(backend.models[0], id="other")]
    keyed = guard(backend)
    for models, seen in ((None, ["kimi-test", "other"]), (["other"], ["other"]), (["third"], [])):
        key = keyed.new(models=models).secret
        assert [model["id"] for model in keyed.get(key, "/v1/models").json()["data"]] == seen
        assert [model["id"] for model in keyed.get(key, "/anthropic/v1/models").json()["data"]] == seen
        assert keyed.post(key).status_code == (200 if "kimi-test" in seen else 403)
        assert keyed.get(key, "/v1/models/kimi-test").status_code == (200 if "kimi-test" in seen else 403)


def test_too_many_requests_are_refused_as_each_api_does(guard: Guard) -> None:
    keyed = guard()
    key = keyed.new(limits=KeyLimits(requests_per_minute=1)).secret
    first = keyed.post(key)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    with keyed.openai(key) as client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**CHAT)  # pyright: ignore
    assert caught.value.type == "rate_limit_reached_error"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    with keyed.anthropic(key) as client, pytest.raises(anthropic.RateLimitError) as refused:
        client.messages.create(**MESSAGE)  # pyright: ignore
    assert refused.value.body["error"]["type"] == "rate_limit_error"  # pyright: ignore


def test_tokens_of_answers_count_against_the_minute(guard: Guard) -> None:
    """A prompt of 7 tokens and an answer of 1, so the third request comes when 16 are used."""
    keyed = guard()
    key = keyed.new(limits=KeyLimits(tokens_per_minute=10)).secret
    assert [keyed.post(key).status_code for _ in range(3)] == [200, 200, 429]
    assert keyed.get(key, "/v1/models").status_code == 200


def test_used_up_credit_refuses_what_costs_and_shows_in_the_balance(guard: Guard) -> None:
    backend = ScriptedBackend.saying("Hi")
    keyed = guard(backend)
    key = keyed.new(credit_picousd=10**12).secret
    assert keyed.get(key, "/v1/users/me/balance").json() == {
        "code": 0,
        "data": {"available_balance": 1.0, "voucher_balance": 0.0, "cash_balance": 1.0},
        "scode": "0x0",
        "status": True,
    }
    with keyed.database.begin() as connection:
        connection.exec_driver_sql(f"UPDATE api_key SET spent = {10**12 + 1}")
    refused = keyed.post(key)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "exceeded_current_quota_error")
    assert keyed.get(key, "/v1/users/me/balance").json()["data"]["available_balance"] < 0
    assert keyed.get(keyed.new().secret, "/v1/users/me/balance").json()["data"]["available_balance"] is None
    assert backend.completer.asked == []


def test_who_leaves_makes_room_at_once(guard: Guard) -> None:
    async def never() -> None:
        await asyncio.sleep(3600)

    backend = ScriptedBackend(ScriptedCompleter(lambda _: Reply(pieces=("a", "b"))))
    keyed = guard(backend)
    key = keyed.new(limits=KeyLimits(concurrent_requests=1)).secret
    num_paused = 0

    async def pause() -> None:
        nonlocal num_paused
        num_paused += 1
        if num_paused == 2:
            await never()

    backend.completer.pause = pause
    headers = {"authorization": f"Bearer {key}"}
    url = f"{keyed.server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**CHAT, "stream": True}, headers=headers, trust_env=False) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        assert keyed.post(key).status_code == 429
    deadline = time.monotonic() + 20
    while keyed.post(key).status_code == 429:
        assert time.monotonic() < deadline, "the place of a client that left was not freed"
    rows = check_books(keyed.database)
    assert [(row["outcome"], row["completion_tokens"]) for row in rows] == [("cancelled", 1), ("finished", 2)]


def test_a_file_is_there_for_its_owner_only(guard: Guard) -> None:
    keyed = guard()
    ana, ben = keyed.new().secret, keyed.new().secret
    with keyed.openai(ana) as hers, keyed.openai(ben) as his:
        file = hers.files.create(file=("note.txt", b"secret"), purpose="user_data")
        assert [found.id for found in hers.files.list()] == [file.id]
        assert list(his.files.list()) == []
        for ask in (his.files.retrieve, his.files.delete, his.files.content):
            with pytest.raises(openai.NotFoundError):
                ask(file.id)
        assert hers.files.content(file.id).read() == b"secret"


def test_metrics_are_for_this_machine_and_for_admins(guard: Guard) -> None:
    keyed = guard()
    assert keyed.get(None, "/metrics").status_code == 200
    through_a_proxy = {"x-forwarded-for": "203.0.113.7"}
    assert keyed.get(None, "/metrics", **through_a_proxy).status_code == 401
    assert keyed.get(keyed.new("chat").secret, "/metrics", **through_a_proxy).status_code == 403
    assert keyed.get(keyed.new("admin").secret, "/metrics", **through_a_proxy).status_code == 200


def test_an_open_server_takes_any_key_for_anybody(guard: Guard) -> None:
    keyed = guard(require_keys=False)
    for key in (None, "any", keyed.new("files").secret):
        assert keyed.post(key).status_code == 200
    assert keyed.get(None, "/v1/users/me/balance").json()["data"]["available_balance"] is None
    assert [row["key_id"] for row in check_books(keyed.database)] == [None] * 3
    assert keyed.get(None, "/metrics", **{"x-forwarded-for": "203.0.113.7"}).status_code == 401


@pytest.mark.parametrize("require_keys", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_metered_is_not_served(guard: Guard, require_keys: bool, stream: bool) -> None:
    backend = ScriptedBackend.saying("Hi")
    keyed = guard(backend, require_keys=require_keys)
    key = keyed.new().secret
    for file in keyed.server.settings.data_folder.glob("accounts.sqlite*"):
        file.unlink()
    headers = {"authorization": f"Bearer {key}"}
    for path, body, kind in (
        ("/v1/chat/completions", CHAT, "server_error"),
        ("/v1/messages", MESSAGE, "overloaded_error"),
    ):
        refused = httpx.post(keyed.server.url + path, json={**body, "stream": stream}, headers=headers, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, kind)
        assert refused.headers["retry-after"] == "5"
        assert "accounts.sqlite" not in refused.text
    assert backend.completer.asked == []


def test_a_key_stands_in_no_log_and_no_error(guard: Guard, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keyed = guard(ScriptedBackend(ScriptedCompleter(lambda _: Reply(error=ZeroDivisionError("a bug")))))
    made = keyed.new(limits=KeyLimits(requests_per_minute=6), models=["kimi-test"])
    key = made.secret
    answers = [
        keyed.post(key),
        keyed.post(key, "/anthropic/v1/messages"),
        keyed.post(key[:-1]),
        keyed.post(f"{key} {key}"),
        keyed.get(key, "/v1/files/none"),
        keyed.get(key, "/metrics", **{"x-forwarded-for": "203.0.113.7"}),
        httpx.post(f"{keyed.server.url}/v1/chat/completions", content=b"{", headers={"x-api-key": key} | JSON),
        *(keyed.post(key) for _ in range(6)),
    ]
    assert {answer.status_code for answer in answers} == {400, 401, 403, 404, 429, 500}
    told = "".join(f"{answer.text}{answer.headers}" for answer in answers)
    for text in (caplog.text, told, repr(made), repr(keyed.server.settings), repr(keyed.keys)):
        assert key[20:-1] not in text
    assert "a bug" in caplog.text + told
