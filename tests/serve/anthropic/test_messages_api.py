"""Messages as the official SDK sees them, over a real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import beta_tool
from pydantic import BaseModel

from chogori.chat.completer import ChatRequest
from chogori.chat.messages import Message
from chogori.errors import BackendError, BackendTimeoutError, ContextLengthError, OverloadedError, RequestError
from tests.serve.anthropic.conftest import Connect
from tests.serve.anthropic.stream_checker import events_of, message_of
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import Asked, Reply, ScriptedBackend, ScriptedCompleter

USER: dict[str, Any] = {"role": "user", "content": "Hello"}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS: list[Any] = [WEATHER]
CALLS = [("get_weather", '{"city": "Skardu"}'), ("get_weather", '{"city": "東京"}')]
QUESTION: dict[str, Any] = {"model": "kimi-test", "max_tokens": 64, "messages": [USER]}
ADDRESSES = ["", "/anthropic"]


def post(server: LiveServer, path: str = "/v1/messages", **changes: object) -> httpx.Response:
    return httpx.post(server.url + path, json={**QUESTION, **changes}, timeout=20)


def asked(backend: ScriptedBackend) -> ChatRequest:
    request = backend.completer.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


def replying(reply: Callable[[Asked], Reply]) -> ScriptedBackend:
    return ScriptedBackend(ScriptedCompleter(reply))


# ---- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_answer_at_once(serve: Serve, connect: Connect, address: str) -> None:
    client = connect(serve(ScriptedBackend.saying("Guten ", "Tag 🏔")), address)
    message = client.messages.create(**QUESTION)
    (block,) = message.content
    assert (block.type, block.text) == ("text", "Guten Tag 🏔")
    assert (message.role, message.model, message.stop_reason) == ("assistant", "kimi-test", "end_turn")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (4, 3, 2)
    assert (message._request_id or "").startswith("req_")


REPLIES = {
    "text": Reply(pieces=["Hel", "lo"]),
    "text and calls": Reply(pieces=["one moment", "…"], calls=CALLS),
    "calls": Reply(calls=CALLS),
    "cut": Reply(pieces=["Hel"], reason="length"),
    "stopped": Reply(pieces=["Hel"], stop_sequence="lo"),
    "nothing": Reply(),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
@pytest.mark.parametrize("address", ADDRESSES)
def test_the_stream_adds_up_to_the_answer_at_once(serve: Serve, connect: Connect, reply: Reply, address: str) -> None:
    server = serve(replying(lambda _: reply))
    client = connect(server, address)
    whole = client.messages.create(**QUESTION, tools=TOOLS, stop_sequences=["lo"])
    with client.messages.stream(**QUESTION, tools=TOOLS, stop_sequences=["lo"]) as stream:
        streamed = stream.get_final_message()

    def comparable(message: anthropic.types.Message) -> dict[str, Any]:
        fields = message.model_dump(exclude={"id"}, exclude_none=True)
        for block in fields["content"]:
            block.pop("id", None)
        return fields

    assert comparable(streamed) == comparable(whole)

    response = post(server, f"{address}/v1/messages", stream=True, tools=TOOLS)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["request-id"] == response.headers["x-request-id"]
    message = message_of(events_of(response.text))
    assert [block["type"] for block in message["content"]] == [block.type for block in whole.content]


def test_a_conversation_with_tools_keeps_its_ids(serve: Serve, connect: Connect) -> None:
    def reply(request: Asked) -> Reply:
        assert isinstance(request, ChatRequest)
        results = [message.content for message in request.messages if message.role == "tool"]
        return Reply(pieces=[f"Both: {', '.join(results)}"]) if results else Reply(pieces=["Looking."], calls=CALLS)

    backend = replying(reply)
    client = connect(serve(backend))
    first = client.messages.create(**QUESTION, tools=TOOLS)
    uses = [block for block in first.content if block.type == "tool_use"]
    assert [use.input for use in uses] == [{"city": "Skardu"}, {"city": "東京"}]
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": use.id, "content": use.input["city"]} for use in reversed(uses)
    ]
    history: list[Any] = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = client.messages.create(model="kimi-test", max_tokens=64, messages=history, tools=TOOLS)
    assert second.content[0].text == "Both: 東京, Skardu"  # pyright: ignore
    # What the model said comes back to it in its own words, so that it is found in the cache.
    assistant, *answers = asked(backend).messages[1:]
    assert [(call.id, call.arguments) for call in assistant.tool_calls] == [
        ("functions.get_weather:0", CALLS[0][1]),
        ("functions.get_weather:1", CALLS[1][1]),
    ]
    assert [answer.tool_call_id for answer in answers] == ["functions.get_weather:1", "functions.get_weather:0"]


def test_the_sdks_own_tool_loop(serve: Serve, connect: Connect) -> None:
    @beta_tool
    def add(first: int, second: int) -> str:
        """Add two numbers."""
        return str(first + second)

    def reply(request: Asked) -> Reply:
        assert isinstance(request, ChatRequest)
        results = [message.content for message in request.messages if message.role == "tool"]
        if len(results) == 2:
            return Reply(pieces=[f"It is {results[-1]}."])
        return Reply(calls=[("add", f'{{"first": {(results or [1])[0]}, "second": 2}}')])

    backend = replying(reply)
    runner = connect(serve(backend)).beta.messages.tool_runner(**QUESTION, tools=[add])
    assert runner.until_done().content[0].text == "It is 5."
    calls = [call.id for message in asked(backend).messages for call in message.tool_calls]
    assert calls == ["functions.add:0", "functions.add:1"]


def test_the_sdk_parses_answers_of_a_schema(serve: Serve, connect: Connect) -> None:
    class City(BaseModel):
        name: str

    backend = ScriptedBackend.saying('{"name": ', '"Skardu"}')
    message = connect(serve(backend)).messages.parse(**QUESTION, output_format=City)
    assert message.parsed_output == City(name="Skardu")
    response_format = asked(backend).response_format
    assert response_format is not None
    assert response_format.schema is not None
    assert response_format.schema["required"] == ["name"]


def test_a_prefill_is_continued(serve: Serve, connect: Connect) -> None:
    backend = ScriptedBackend.saying(" a time")
    messages: list[Any] = [USER, {"role": "assistant", "content": "Once upon"}]
    message = connect(serve(backend)).messages.create(model="kimi-test", max_tokens=64, messages=messages)
    assert message.content[0].text == " a time"  # pyright: ignore
    assert asked(backend).messages[-1] == Message(role="assistant", content="Once upon", partial=True)


# ---- counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ADDRESSES)
def test_token_counts_are_the_backends(serve: Serve, connect: Connect, address: str) -> None:
    backend = ScriptedBackend.saying("Hi")
    client = connect(serve(backend), address)
    count = client.messages.count_tokens(
        model="kimi-test", system="x" * 8, messages=[{"role": "user", "content": "x" * 40}], tools=TOOLS
    )
    assert count.input_tokens == 12
    assert not backend.completer.asked


@pytest.mark.parametrize("stream", [False, True])
def test_marked_tokens_that_were_not_in_the_cache_are_written_to_it(serve: Serve, stream: bool) -> None:
    reply = Reply(pieces=["Hi"], prompt_tokens=100, cached_tokens=20)
    server = serve(replying(lambda _: reply))
    marked = {"type": "text", "text": "x" * 320, "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [marked, {"type": "text", "text": "y" * 80}]}]
    response = post(server, messages=messages, stream=stream)
    usage = (message_of(events_of(response.text)) if stream else response.json())["usage"]
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    assert tuple(usage[name] for name in names) == (20, 60, 20, 1)


# ---- failures -----------------------------------------------------------------------------------------------------

FAILURES: list[tuple[Exception, type[anthropic.APIStatusError], int, str, str]] = [
    (
        ContextLengthError("5000 tokens; the context is 4096"),
        anthropic.BadRequestError,
        400,
        "invalid_request_error",
        "prompt is too long: 5000 tokens; the context is 4096",
    ),
    (RequestError("f is odd", field="f"), anthropic.BadRequestError, 400, "invalid_request_error", "f is odd"),
    (
        OverloadedError("64 requests wait", retry_after_s=2.4),
        anthropic.InternalServerError,
        529,
        "overloaded_error",
        "64 requests wait",
    ),
    (BackendError("the engine stopped"), anthropic.InternalServerError, 500, "api_error", "the engine stopped"),
    (BackendError("upstream: no", status=401), anthropic.InternalServerError, 502, "api_error", "upstream: no"),
    (BackendTimeoutError("no answer in 60 s"), anthropic.InternalServerError, 504, "timeout_error", "no answer in"),
    (ZeroDivisionError("secret"), anthropic.InternalServerError, 500, "api_error", "failed"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "status", "name", "message"), FAILURES, ids=[type(failure[0]).__name__ for failure in FAILURES]
)
def test_failures_before_the_first_token_have_their_status(
    serve: Serve,
    connect: Connect,
    error: Exception,
    kind: type[anthropic.APIStatusError],
    status: int,
    name: str,
    message: str,
    stream: bool,
) -> None:
    client = connect(serve(ScriptedBackend.saying(error=error)))
    with pytest.raises(kind) as caught:
        client.messages.create(**QUESTION, stream=stream)
    assert caught.value.status_code == status
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", name)
    assert body["error"]["message"].startswith(message) or message in body["error"]["message"]
    assert body["request_id"] == caught.value.request_id
    assert caught.value.response.headers.get("retry-after") == ("2" if status == 529 else None)


def test_a_failure_half_way_is_the_last_event_of_a_stream(serve: Serve, connect: Connect) -> None:
    server = serve(ScriptedBackend.saying("Hel", error=BackendError("the engine stopped")))
    response = post(server, stream=True)
    events = events_of(response.text)
    assert events[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "the engine stopped"},
        "request_id": response.headers["request-id"],
    }
    with pytest.raises(anthropic.APIStatusError, match="the engine stopped"):
        list(connect(server).messages.create(**QUESTION, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(serve: Serve, stream: bool) -> None:
    never = asyncio.Event()

    async def hold() -> None:
        await never.wait()

    backend = ScriptedBackend(ScriptedCompleter(lambda _: Reply(pieces=["Hi"]), pause=hold))
    server = serve(backend)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/messages", json={**QUESTION, "stream": stream}, timeout=0.3)
    deadline = time.monotonic() + 10
    while backend.completer.num_cancelled < 1:
        assert time.monotonic() < deadline, "the request was not cancelled"
        time.sleep(0.005)
    assert backend.completer.num_running == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("GET", "/anthropic/v1/nothing", 404, "not_found_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("POST", "/v1/messages", 415, "invalid_request_error"),
    ],
)
def test_errors_beside_the_endpoints_have_anthropics_shape(
    serve: Serve, method: str, path: str, status: int, kind: str
) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    response = httpx.request(method, server.url + path, content=b"{}" if method == "POST" else None)
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == response.headers["x-request-id"]


def test_a_body_that_is_too_large_has_anthropics_shape(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"), max_body_bytes=10_000)
    response = post(server, system="x" * 20_000)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")


def test_before_the_model_is_loaded_clients_are_told_to_come_again(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    backend.started = asyncio.Event()
    server = serve(backend, max_body_bytes=1_000_000)  # a server of its own
    for path in ("/v1/messages", "/anthropic/v1/messages/count_tokens"):
        body = {"model": "kimi-test", "messages": [USER], **({"max_tokens": 9} if path == "/v1/messages" else {})}
        response = httpx.post(server.url + path, json=body)
        assert (response.status_code, response.json()["error"]["type"]) == (503, "overloaded_error")
        assert response.headers["retry-after"] == "1"
    server.in_loop(backend.started)


def test_requests_are_counted_under_the_name_of_the_api(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"), max_body_bytes=1_000_000)
    assert post(server).status_code == 200
    assert (
        'chogori_answers_total{api="anthropic_messages",outcome="stop"} 1.0' in httpx.get(server.url + "/metrics").text
    )
