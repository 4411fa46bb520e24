"""Chat completions as the official SDK sees them, over a real socket."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from chogori.chat.completer import ChatRequest
from chogori.errors import (
    BackendError,
    BackendTimeoutError,
    ContextLengthError,
    OverloadedError,
    RequestError,
)
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import Reply, ScriptedBackend, ScriptedCompleter

USER = {"role": "user", "content": "Hello"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
WEB_SEARCH = {"type": "builtin_function", "function": {"name": "$web_search"}}
CALLS = [("get_weather", '{"city": "Skardu"}'), ("get_weather", '{"city": "東京"}')]


def client_of(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20)


def post(server: LiveServer, **body: object) -> httpx.Response:
    body = {"model": "kimi-test", "messages": [USER], **body}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20)


def asked(backend: ScriptedBackend) -> ChatRequest:
    request = backend.completer.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# ---- answers -----------------------------------------------------------------------------------------------------


def test_an_answer_at_once(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Guten ", "Tag 🏔"))
    answer = client_of(server).chat.completions.create(model="kimi-test", messages=[USER])  # pyright: ignore
    assert answer.choices[0].message.content == "Guten Tag 🏔"
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == ("stop", "kimi-test", "chat.completion")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    usage = answer.usage.model_dump()
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 2, 9)
    assert usage["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(pieces=["Hel", "lo"]),
        Reply(pieces=["one moment", "…"], calls=CALLS),
        Reply(calls=CALLS),
        Reply(),
    ],
    ids=["text", "text and calls", "calls", "nothing"],
)
@pytest.mark.parametrize("num_choices", [1, 3])
def test_the_stream_adds_up_to_the_answer_at_once(serve: Serve, reply: Reply, num_choices: int) -> None:
    server = serve(ScriptedBackend(ScriptedCompleter(lambda _: reply)))
    body: dict[str, Any] = {
        "model": "kimi-test",
        "messages": [USER],
        "tools": [WEATHER],
        "n": num_choices,
        "logprobs": True,
        "top_logprobs": 2,
    }
    client = client_of(server)
    whole = client.chat.completions.create(**body)
    with client.chat.completions.stream(**body, stream_options={"include_usage": True}) as stream:
        streamed = stream.until_done().get_final_completion()

    def comparable(answer: Any) -> list[dict[str, Any]]:
        choices = answer.model_dump(exclude_none=True)["choices"]
        for choice in choices:
            choice["message"].pop("parsed", None)
            for call in choice["message"].get("tool_calls", ()):
                call["function"].pop("parsed_arguments", None)
                call.pop("index", None)
            # A stream says nothing about log-probabilities of a choice that has no tokens.
            if not (choice.get("logprobs") or {}).get("content"):
                choice.pop("logprobs", None)
        return choices

    assert comparable(streamed) == comparable(whole)
    assert streamed.usage == whole.usage
    assert len(whole.choices) == num_choices


def test_the_shape_of_a_stream(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi", calls=CALLS))
    chunks = chunks_of(post(server, stream=True, stream_options={"include_usage": True}, tools=[WEATHER]))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    middle = len(CALLS[1][1]) // 2
    assert deltas[:3] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "functions.get_weather:0",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ""},
                }
            ]
        },
    ]
    assert deltas[-3:] == [
        {"tool_calls": [{"index": 1, "function": {"arguments": CALLS[1][1][:middle]}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": CALLS[1][1][middle:]}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-3:-1]] == [None, "tool_calls"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 7
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1


def test_without_being_asked_a_stream_holds_no_usage_and_a_call_first_has_null_content(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying(calls=CALLS[:1]))
    response = post(server, stream=True, tools=[WEATHER])
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "usage" not in response.text
    assert chunks_of(response)[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}


def test_an_answer_cut_short_says_so(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("cut", reason="length"))
    assert post(server).json()["choices"][0]["finish_reason"] == "length"
    assert chunks_of(post(server, stream=True))[-1]["choices"][0]["finish_reason"] == "length"


def test_log_probabilities_hold_bytes_of_parts_of_characters(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("é"))
    logprobs = post(server, logprobs=True, top_logprobs=1).json()["choices"][0]["logprobs"]
    assert logprobs["content"] == [
        {
            "token": "é",
            "logprob": -0.25,
            "bytes": [0xC3, 0xA9],
            "top_logprobs": [{"token": "alt0", "logprob": -1.0, "bytes": list(b"alt0")}],
        }
    ]
    assert post(server).json()["choices"][0]["logprobs"] is None


def test_web_search_passes_through_as_moonshots_builtin_function(serve: Serve) -> None:
    backend = ScriptedBackend.saying(calls=[("$web_search", '{"query": "K2"}')])
    server = serve(backend)
    for stream in (False, True):
        response = post(server, tools=[WEB_SEARCH], stream=stream)
        if stream:
            call = chunks_of(response)[1]["choices"][0]["delta"]["tool_calls"][0]
        else:
            call = response.json()["choices"][0]["message"]["tool_calls"][0]
        assert (call["type"], call["function"]["name"]) == ("builtin_function", "$web_search")
    (tool,) = asked(backend).tools
    assert tool.is_builtin
    assert tool.parameters == {"type": "object"}

    echoed = {"role": "tool", "tool_call_id": call["id"], "name": "$web_search", "content": '{"query": "K2"}'}
    call["function"]["arguments"] = '{"query": "K2"}'
    history = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, echoed]
    assert post(server, tools=[WEB_SEARCH], messages=history).status_code == 200
    assert asked(backend).messages[1].tool_calls[0].name == "$web_search"
    assert asked(backend).messages[2].content == '{"query": "K2"}'


# ---- counts and failures ------------------------------------------------------------------------------------------


def test_token_estimates_are_the_backends(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    body = {"model": "kimi-test", "messages": [{"role": "user", "content": "x" * 40}], "tools": [WEATHER]}
    response = httpx.post(f"{server.url}/v1/tokenizers/estimate-token-count", json=body)
    assert response.json() == {"data": {"total_tokens": 10}}


FAILURES: list[tuple[Exception, type[openai.APIStatusError], int, str | None]] = [
    (ContextLengthError("5000 tokens; the context is 4096"), openai.BadRequestError, 400, "context_length_exceeded"),
    (RequestError("seed is odd", field="seed"), openai.BadRequestError, 400, None),
    (OverloadedError("64 requests wait", retry_after_s=2.4), openai.RateLimitError, 429, "engine_overloaded"),
    (BackendError("the engine stopped"), openai.InternalServerError, 500, "backend_failed"),
    (BackendError("upstream said no", status=401), openai.InternalServerError, 502, "backend_failed"),
    (BackendTimeoutError("no answer in 60 s"), openai.InternalServerError, 504, "timeout"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "kind", "status", "code"), FAILURES, ids=[type(f[0]).__name__ for f in FAILURES])
def test_failures_before_the_first_token_have_their_status(
    serve: Serve, error: Exception, kind: type[openai.APIStatusError], status: int, code: str | None, stream: bool
) -> None:
    client = client_of(serve(ScriptedBackend.saying(error=error)))
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model="kimi-test", messages=[USER], stream=stream)  # pyright: ignore
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert str(error) in caught.value.message
    assert caught.value.response.headers.get("retry-after") == ("2" if status == 429 else None)


def test_a_failure_half_way_is_the_last_event_of_a_stream(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hel", error=BackendError("the engine stopped")))
    lines = post(server, stream=True).text.strip().split("\n\n")
    assert json.loads(lines[-1].removeprefix("data: ")) == {
        "error": {"message": "the engine stopped", "type": "server_error", "param": None, "code": "backend_failed"}
    }
    assert "Hel" in lines[-2]
    stream = client_of(server).chat.completions.create(model="kimi-test", messages=[USER], stream=True)  # pyright: ignore
    with pytest.raises(openai.APIError, match="the engine stopped"):
        list(stream)


def test_an_unknown_model_is_not_found_and_the_served_are_named(serve: Serve) -> None:
    client = client_of(serve(ScriptedBackend.saying("Hi"), model_aliases={"kimi-k2": "kimi-test"}))
    with pytest.raises(
        openai.NotFoundError, match=r"'gpt-4' does not exist here; served: kimi-test, kimi-k2"
    ) as caught:
        client.chat.completions.create(model="gpt-4", messages=[USER])  # pyright: ignore
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
