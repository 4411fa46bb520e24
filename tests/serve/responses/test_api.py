"""The Responses API as the official SDK sees it, over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from chogori.chat.completer import ChatRequest, JsonFormat
from chogori.errors import BackendError, BackendTimeoutError, ContextLengthError, OverloadedError, RequestError
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import Asked, Reply, ScriptedBackend, ScriptedCompleter

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALLS = [("get_weather", '{"city": "Skardu"}'), ("get_weather", '{"city": "東京"}')]


class City(BaseModel):
    name: str
    height_m: int


ClientOf = Callable[[LiveServer], openai.OpenAI]


@pytest.fixture
def client_of() -> Generator[ClientOf]:
    """A function that gives an official client of a server; all of them are closed at the end."""
    with ExitStack() as stack:

        def connect(server: LiveServer) -> openai.OpenAI:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20)
            return stack.enter_context(client)

        yield connect


def asked(backend: ScriptedBackend) -> ChatRequest:
    request = backend.completer.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


def without_ids(output: Sequence[BaseModel]) -> list[dict[str, Any]]:
    return [item.model_dump(exclude={"id"}) for item in output]


# ---- answers -----------------------------------------------------------------------------------------------------


def test_an_answer_at_once(serve: Serve, client_of: ClientOf) -> None:
    server = serve(ScriptedBackend.saying("Guten ", "Tag 🏔"))
    response = client_of(server).responses.create(model="kimi-test", input="Hello", instructions="Be brief.")
    assert response.output_text == "Guten Tag 🏔"
    assert (response.status, response.model, response.object) == ("completed", "kimi-test", "response")
    assert response.instructions == "Be brief."
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 2, 9)
    assert response.usage.input_tokens_details.cached_tokens == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(pieces=["Hel", "lo"]),
        Reply(pieces=["one moment", "…"], calls=CALLS),
        Reply(calls=CALLS),
        Reply(),
        Reply(pieces=["cut"], reason="length"),
    ],
    ids=["text", "text and calls", "calls", "nothing", "cut"],
)
def test_what_the_sdk_collects_from_a_stream_is_the_response_at_once(
    serve: Serve, client_of: ClientOf, reply: Reply
) -> None:
    client = client_of(serve(ScriptedBackend(ScriptedCompleter(lambda _: reply))))
    whole = client.responses.create(model="kimi-test", input="Hello", tools=[WEATHER])

    events = list(client.responses.create(model="kimi-test", input="Hello", tools=[WEATHER], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed" or last.type == "response.incomplete"
    assert last.type == f"response.{whole.status}"
    assert without_ids(last.response.output) == without_ids(whole.output)
    assert last.response.usage == whole.usage

    with client.responses.stream(model="kimi-test", input="Hello", tools=[WEATHER]) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert snapshots == ["".join(reply.pieces[: i + 1]) for i in range(len(reply.pieces))]


def test_the_sdk_runs_a_tool_and_sends_everything_back(serve: Serve, client_of: ClientOf) -> None:
    def reply(request: Asked) -> Reply:
        assert isinstance(request, ChatRequest)
        results = [message.content for message in request.messages if message.role == "tool"]
        return Reply(pieces=[" and ".join(results)]) if results else Reply(pieces=["Let me see."], calls=CALLS)

    backend = ScriptedBackend(ScriptedCompleter(reply))
    client = client_of(serve(backend))
    items: list[Any] = [{"role": "user", "content": "Weather?"}]
    with client.responses.stream(model="kimi-test", input=items, tools=[WEATHER]) as stream:
        first = stream.get_final_response()
    assert first.output_text == "Let me see."
    calls = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
    assert [call.call_id for call in calls] == ["functions.get_weather:0", "functions.get_weather:1"]
    items += first.output
    for call in calls:
        city = json.loads(call.arguments)["city"]
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": f"{city}: snow"})

    second = client.responses.create(model="kimi-test", input=items, tools=[WEATHER])
    assert second.output_text == "Skardu: snow and 東京: snow"
    user, assistant, *results = asked(backend).messages
    assert (user.content, assistant.content) == ("Weather?", "Let me see.")
    assert [(call.id, call.name, call.arguments) for call in assistant.tool_calls] == [
        ("functions.get_weather:0", *CALLS[0]),
        ("functions.get_weather:1", *CALLS[1]),
    ]
    assert [result.tool_call_id for result in results] == [call.id for call in assistant.tool_calls]


def test_the_sdk_parses_answers_and_arguments(serve: Serve, client_of: ClientOf) -> None:
    backend = ScriptedBackend.saying('{"name": "K2", ', '"height_m": 8611}')
    client = client_of(serve(backend))
    city = City(name="K2", height_m=8611)
    assert client.responses.parse(model="kimi-test", input="Hello", text_format=City).output_parsed == city
    response_format = asked(backend).response_format
    assert isinstance(response_format, JsonFormat)
    assert response_format.schema is not None
    assert response_format.schema["required"] == ["name", "height_m"]
    with client.responses.stream(model="kimi-test", input="Hello", text_format=City) as stream:
        assert stream.get_final_response().output_parsed == city

    client = client_of(serve(ScriptedBackend.saying(calls=[("City", '{"name": "K2", "height_m": 8611}')])))
    tool: Any = {**openai.pydantic_function_tool(City)["function"], "type": "function"}
    (call,) = client.responses.parse(model="kimi-test", input="Hello", tools=[tool]).output
    assert call.type == "function_call"
    assert call.parsed_arguments == {"name": "K2", "height_m": 8611}


# ---- failures ----------------------------------------------------------------------------------------------------

FAILURES: list[tuple[Exception, type[openai.APIStatusError], int, str | None, str | None]] = [
    (
        ContextLengthError("5000 tokens; the context is 4096", field="messages"),
        openai.BadRequestError,
        400,
        "context_length_exceeded",
        "input",
    ),
    (RequestError("tools are odd", field="tools"), openai.BadRequestError, 400, None, "tools"),
    (OverloadedError("64 requests wait", retry_after_s=2.4), openai.RateLimitError, 429, "engine_overloaded", None),
    (BackendError("the engine stopped"), openai.InternalServerError, 500, "backend_failed", None),
    (BackendTimeoutError("no answer in 60 s"), openai.InternalServerError, 504, "timeout", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "kind", "status", "code", "param"), FAILURES, ids=[str(f[0]) for f in FAILURES])
def test_failures_before_the_first_token_have_their_status(
    serve: Serve,
    client_of: ClientOf,
    error: Exception,
    kind: type[openai.APIStatusError],
    status: int,
    code: str | None,
    param: str | None,
    stream: bool,
) -> None:
    client = client_of(serve(ScriptedBackend.saying(error=error)))
    with pytest.raises(kind) as caught:
        client.responses.create(model="kimi-test", input="Hello", stream=stream)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)
    assert str(error) in caught.value.message


def test_refusals_name_the_parameters_of_this_api(serve: Serve, client_of: ClientOf) -> None:
    error = RequestError("response_format.json_schema cannot be enforced", field="response_format.json_schema")
    client = client_of(serve(ScriptedBackend.saying(error=error)))
    with pytest.raises(openai.BadRequestError, match=r"- text\.format\.schema cannot be enforced") as caught:
        client.responses.create(model="kimi-test", input="Hello")
    assert caught.value.param == "text.format.schema"


def test_a_failure_half_way_is_the_last_event_of_a_stream_and_an_error_at_once(
    serve: Serve, client_of: ClientOf
) -> None:
    client = client_of(serve(ScriptedBackend.saying("Hel", error=BackendError("the engine stopped"))))
    *_, last = client.responses.create(model="kimi-test", input="Hello", stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.error.code, last.response.error.message) == ("server_error", "the engine stopped")
    with pytest.raises(openai.InternalServerError, match="the engine stopped"):
        client.responses.create(model="kimi-test", input="Hello")


def test_an_unknown_model_is_not_found(serve: Serve, client_of: ClientOf) -> None:
    client = client_of(serve(ScriptedBackend.saying("Hi")))
    with pytest.raises(openai.NotFoundError, match="'gpt-5' does not exist here"):
        client.responses.create(model="gpt-5", input="Hello")


def test_a_client_that_leaves_cancels_its_answer_and_is_counted(serve: Serve, client_of: ClientOf) -> None:
    async def pause() -> None:
        if completer.num_events > 1:
            await asyncio.Event().wait()

    completer = ScriptedCompleter(lambda _: Reply(pieces=["a", "b"]), pause=pause)
    server = serve(ScriptedBackend(completer), drain_timeout_s=5.0)
    with client_of(server).responses.create(model="kimi-test", input="Hello", stream=True) as stream:
        assert next(event.delta for event in stream if event.type == "response.output_text.delta") == "a"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/responses", json={"input": "Hello"}, timeout=0.2)
    deadline = time.monotonic() + 10
    while completer.num_cancelled < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (completer.num_running, completer.num_cancelled) == (0, 2)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'chogori_answers_total{api="openai_responses",outcome="cancelled"} 2.0' in metrics
