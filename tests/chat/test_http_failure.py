"""Whatever a server answers in place of an answer is a typed error, said once and without our key."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from chogori.chat.http_completer import HttpCompleter
from chogori.chat.http_failure import MAX_QUOTED_CHARS, Refusal, refusal_of
from chogori.chat.retry_policy import RetryPolicy
from chogori.errors import (
    BackendError,
    BackendTimeoutError,
    CompleterError,
    ContextLengthError,
    RequestError,
)
from tests.chat.http_asking import KEY, ask
from tests.chat.misbehaving_server import MisbehavingServer, events, reply, running_server, said, stream


@pytest.fixture(scope="module")
def running() -> Iterator[MisbehavingServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def server(running: MisbehavingServer) -> MisbehavingServer:
    running.reset(said())
    return running


@pytest.mark.parametrize(
    ("status", "content", "kind", "attributes"),
    [
        (400, {"error": {"message": "bad", "param": "top_p"}}, RequestError, {"field": "top_p"}),
        (422, {"detail": [{"loc": ["body"]}]}, RequestError, {"field": None}),
        (400, {"error": {"message": "x", "code": "context_length_exceeded"}}, ContextLengthError, {}),
        (400, {"object": "error", "message": "maximum context length is 8"}, ContextLengthError, {}),
        (404, {"error": {"message": "The model `m` does not exist"}}, RequestError, {"field": "model"}),
        (404, "<html>nothing here</html>", BackendError, {"status": 404}),
        (401, {"error": "invalid key"}, BackendError, {"status": 401}),
        (403, {"error": {"message": "no"}}, BackendError, {"status": 403}),
        (429, {"error": {"message": "pay", "type": "exceeded_current_quota_error"}}, BackendError, {"status": 429}),
        (307, "", BackendError, {"status": 307}),
    ],
)
def test_refusals_are_typed_and_final(
    server: MisbehavingServer, status: int, content: object, kind: type[CompleterError], attributes: dict[str, object]
) -> None:
    server.reset(reply(content, status, {"location": "http://elsewhere/v1"} if status == 307 else None))
    told, error = ask(server)
    assert told == []
    assert type(error) is kind
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert f"kimi-k2 at {server.url} answered {status}: " in str(error)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("status", "kind"), [(500, BackendError), (408, BackendTimeoutError), (504, BackendTimeoutError)]
)
def test_failures_that_stay_are_told(server: MisbehavingServer, status: int, kind: type[CompleterError]) -> None:
    server.reset(reply({"error": {"message": "out of order"}}, status))
    _, error = ask(server, retries=RetryPolicy(max_retries=0))
    assert type(error) is kind
    assert getattr(error, "status", status) == status
    assert "out of order" in str(error)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"data: <html>\n\n", "what is not JSON: '<html>'"),
        (b"data: 3\n\n", "sent int for a chunk"),
        (b'data: {"choices": [{"index": 5}]}\n\n', "sent choice 5; asked for 1"),
        (b'data: {"choices": [{"delta": {"content": 3}}]}\n\n', "sent int for content"),
        (b'data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\n', "finish_reason 'abort'"),
        (b"\xff\xfe\x00", "ended before the answer did"),
        (b"", "ended before the answer did"),
        (b"data: [DONE]\n\n", "ended before the answer did"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "what is not JSON"),
    ],
)
def test_what_is_no_answer_is_refused(server: MisbehavingServer, body: bytes, message: str) -> None:
    server.reset(stream(body))
    _, error = ask(server)
    assert isinstance(error, BackendError)
    assert message in str(error)


def test_the_key_is_nowhere(server: MisbehavingServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = [repr(HttpCompleter(server.url, "m", api_key=KEY))]
    echo = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    for behaviour in (reply(echo, 401), reply(echo, 500), stream(events(echo)), stream(f"data: {KEY}\n\n".encode())):
        server.reset(behaviour)
        _, error = ask(server)
        assert error is not None
        told += [str(error), repr(error), repr(error.__cause__)]
    assert KEY not in "".join(told) + caplog.text
    assert "[api key]" in told[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}',
            Refusal(message="m", code="t c", field="p"),
        ),
        ('{"object": "error", "message": "m", "code": 400}', Refusal(message="m", code="400", status=400)),
        ('{"error": "m"}', Refusal(message="m")),
        ('{"detail": "m"}', Refusal(message="m")),
        ('{"detail": [{"loc": ["a"]}]}', Refusal(message='[{"loc": ["a"]}]')),
        ('{"error": null}', Refusal(message='{"error": null}')),
        ('["m"]', Refusal(message='["m"]')),
        ("", Refusal(message="an empty reply")),
        ("x" * 9999, Refusal(message="x" * MAX_QUOTED_CHARS + "…")),
    ],
)
def test_refusals_are_read_in_every_shape(text: str, expected: Refusal) -> None:
    assert refusal_of(text) == expected
