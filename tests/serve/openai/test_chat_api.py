"""Chat completions as the official SDK sees them, over a real socket."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool
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


@pytest.fixture(scope="module")
def shared(serve_for_module: Serve) -> tuple[ScriptedBackend, LiveServer]:
    backend = ScriptedBackend.saying("Hi")
    return backend, serve_for_module(backend)


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


# ---- what is asked -----------------------------------------------------------------------------------------------


def test_every_parameter_reaches_the_completer(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend)
    response = post(
        server,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {**USER, "name": "ada"},
            {"role": "assistant", "content": "The answer is", "partial": True},
        ],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        max_completion_tokens=11,
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"42": -100},
        stop=["a", "b", "c", "d", "e"],
        seed=2**63 + 5,
        n=2,
        logprobs=True,
        top_logprobs=3,
    )
    assert response.status_code == 200, response.text
    request = asked(backend)
    system, user, partial = request.messages
    assert (system.role, system.content) == ("system", "Be brief.")
    assert (user.name, partial.content, partial.partial) == ("ada", "The answer is", True)
    assert request.tools[0].name == "get_weather"
    assert (request.tool_choice, request.parallel_tool_calls) == (NamedTool(name="get_weather"), False)
    assert request.response_format == JsonFormat(schema={"type": "object"})
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (11, 0, 0.5, 40)
    assert (sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 1, -1)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.1, {42: -100})
    assert (sampling.stop, sampling.seed, sampling.num_choices) == (("a", "b", "c", "d", "e"), 5, 2)
    assert (sampling.logprobs, sampling.top_logprobs) == (True, 3)
    assert request.model == "kimi-test"


def test_defaults_and_nulls_are_the_same(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend, default_temperature=0.6)
    names = "max_tokens temperature top_p top_k n stop seed tools tool_choice response_format logit_bias stream user"
    assert post(server).status_code == 200
    assert post(server, **dict.fromkeys(names.split())).headers.get("x-chogori-ignored") is None
    first, second = backend.completer.asked
    assert first.sampling == second.sampling
    assert first.sampling.temperature == 0.6
    assert asked(backend).tool_choice == "auto"


@pytest.mark.parametrize(("given", "top_k"), [(-1, None), (0, None), (7, 7), (7.0, 7)])
def test_top_k_may_say_all_tokens_as_vllm_does(serve: Serve, given: float, top_k: int | None) -> None:
    backend = ScriptedBackend.saying("Hi")
    post(serve(backend), top_k=given)
    assert asked(backend).sampling.top_k == top_k


def test_parameters_without_effect_are_named_in_a_header(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    for stream in (False, True):
        response = post(server, stream=stream, user="ada", metadata={"a": "b"}, prompt_cache_key="k", store=False)
        assert response.status_code == 200
        assert response.headers["x-chogori-ignored"] == "metadata, prompt_cache_key, user"


def test_a_model_may_be_left_out_or_called_by_an_alias(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend, model_aliases={"kimi-k2": "kimi-test"})
    for name in ("kimi-k2", None):
        assert post(server, model=name).json()["model"] == "kimi-test"
        assert asked(backend).model == "kimi-test"


def test_token_estimates_are_the_backends(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    body = {"model": "kimi-test", "messages": [{"role": "user", "content": "x" * 40}], "tools": [WEATHER]}
    response = httpx.post(f"{server.url}/v1/tokenizers/estimate-token-count", json=body)
    assert response.json() == {"data": {"total_tokens": 10}}


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "expected one of"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "tool_call_id"),
        ({"messages": [{**USER, "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "reads text only"),
        ({"messages": [{"role": "assistant", "partial": 1}]}, "messages[0].partial", "true or false"),
        ({"messages": [{"role": "assistant", "partial": True}, USER]}, "messages", "only the last"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "expected an object"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "earlier tool"),
        ({"tools": [WEATHER] * 129}, "tools", "at most 128"),
        ({"tool_choice": "required"}, "tool_choice", "tools is empty"),
        ({"tool_choice": "maybe", "tools": [WEATHER]}, "tool_choice", "auto"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "declared are no tools"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "they mean the same"),
        ({"stop": ["a"] * 6}, "stop", "at most 5"),
        ({"n": True}, "n", "valid integer"),
        ({"logit_bias": {"the": 1}}, "logit_bias.the", "match pattern"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs is not true"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is not true"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "not permitted"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"store": True}, "store", "keeps no completions"),
        ({"functions": []}, "functions", "use tools"),
        ({"temprature": 1}, "temprature", "Unrecognized request argument supplied: temprature"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_is_refused_by_name(
    shared: tuple[ScriptedBackend, LiveServer], body: dict[str, object], param: str, words: str, stream: bool
) -> None:
    backend, server = shared
    backend.completer.asked.clear()
    if "stream_options" in body:
        stream = bool(body.get("stream"))
    response = post(server, **{"stream": stream, **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    assert words in error["message"]
    assert backend.completer.asked == []


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", 400),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "application/json", 400),
        (b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b"messages=1", "application/x-www-form-urlencoded", 415),
        (b"{}", "", 415),
    ],
    ids="cut empty list surrogate latin1 nan deep digits form untyped".split(),
)
def test_bodies_that_are_no_json(
    shared: tuple[ScriptedBackend, LiveServer], content: bytes, media_type: str, status: int
) -> None:
    _, server = shared
    headers = {"content-type": media_type} if media_type else {}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert post(server).status_code == 200


def test_an_escaped_pair_of_surrogates_is_a_character(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    body = rb'{"messages": [{"role": "user", "content": "\ud83c\udfd4"}]}'
    url = f"{serve(backend).url}/v1/chat/completions"
    assert httpx.post(url, content=body, headers={"content-type": "application/json"}).status_code == 200
    assert asked(backend).messages[0].content == "🏔"


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
