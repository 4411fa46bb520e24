"""What chat completions read, and what they refuse: the body of the request, over a real socket."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend

JSON = "application/json"
NOT_PARSED = "We could not parse the JSON body of your request"

USER = {"role": "user", "content": "Hello"}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def post(server: LiveServer, **body: object) -> httpx.Response:
    body = {"model": "kimi-test", "messages": [USER], **body}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20)


def asked(backend: ScriptedBackend) -> ChatRequest:
    request = backend.completer.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


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


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": []}, "messages", "empty array. Expected an array with minimum length 1"),
        ({"messages": "hi"}, "messages", "expected an array, but got a string"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "expected one of"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "tool_call_id"),
        ({"messages": [{**USER, "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "reads text only"),
        (
            {"messages": [USER, {"role": "user"}]},
            "messages[1].content",
            "Missing required parameter: 'messages[1].content'.",
        ),
        (
            {"messages": [{"role": "tool", "tool_call_id": "a", "content": None}]},
            "messages[0].content",
            "Missing required",
        ),
        ({"messages": [{"role": "assistant", "partial": 1}]}, "messages[0].partial", "true or false"),
        ({"messages": [{"role": "assistant", "partial": True}, USER]}, "messages", "only the last"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "expected an object"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "earlier tool"),
        ({"tools": [WEATHER] * 129}, "tools", "maximum length 128, but"),
        ({"tool_choice": "required"}, "tool_choice", "tools is empty"),
        ({"tool_choice": "maybe", "tools": [WEATHER]}, "tool_choice", "auto"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "declared are no tools"),
        ({"temperature": 3}, "temperature", "decimal above maximum value. Expected a value <= 2, but got 3"),
        ({"temperature": "warm"}, "temperature", "expected a decimal, but got a string instead"),
        ({"max_tokens": 0}, "max_tokens", "integer below minimum value. Expected a value >= 1, but got 0"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "they mean the same"),
        ({"stop": ["a"] * 6}, "stop", "maximum length 5, but got an array with length 6"),
        ({"n": True}, "n", "expected an integer, but got a boolean"),
        ({"logit_bias": {"the": 1}}, "logit_bias.the", "match pattern"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs is not true"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is not true"),
        (
            {"stream": True, "stream_options": {"usage": True}},
            "stream_options.usage",
            "Unknown parameter: 'stream_options.usage'.",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"store": True}, "store", "keeps no completions"),
        ({"functions": []}, "functions", "use tools"),
        ({"temprature": 1}, "temprature", "Unrecognized request argument supplied: temprature"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_is_refused_by_name(
    serve: Serve, body: dict[str, object], param: str, words: str, stream: bool
) -> None:
    backend = ScriptedBackend.saying("Hi")
    if "stream_options" in body:
        stream = bool(body.get("stream"))
    response = post(serve(backend), **{"stream": stream, **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    assert words in error["message"]
    assert backend.completer.asked == []


@pytest.mark.parametrize(
    ("content", "media_type", "status", "words"),
    [
        (b'{"n":', JSON, 400, f"{NOT_PARSED}: Expecting value: line 1 column 6 (char 5)"),
        (b"", JSON, 400, "Missing request body; expected a JSON object."),
        (b"[1]", JSON, 400, "Invalid type for the request body: expected an object, but got an array instead."),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', JSON, 400, f"{NOT_PARSED}: it is not valid UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', JSON, 400, f"{NOT_PARSED}: it is not valid UTF-8"),
        (b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', JSON, 400, "finite number"),
        (b"[" * 100_000, JSON, 400, f"{NOT_PARSED}: it is nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", JSON, 400, f"{NOT_PARSED}: it holds a number of too many digits"),
        (b"messages=1", "application/x-www-form-urlencoded", 415, "expected application/json"),
        (b"{}", "", 415, "expected application/json"),
    ],
    ids="cut empty list surrogate latin1 nan deep digits form untyped".split(),
)
def test_bodies_that_are_no_json(serve: Serve, content: bytes, media_type: str, status: int, words: str) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    headers = {"content-type": media_type} if media_type else {}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert post(server).status_code == 200


def test_an_escaped_pair_of_surrogates_is_a_character(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    body = rb'{"messages": [{"role": "user", "content": "\ud83c\udfd4"}]}'
    url = f"{serve(backend).url}/v1/chat/completions"
    assert httpx.post(url, content=body, headers={"content-type": "application/json"}).status_code == 200
    assert asked(backend).messages[0].content == "🏔"


# ---- anything at all ---------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("role content type function name arguments parameters tool_calls id schema".split())
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    "model messages prompt tools tool_choice response_format stop stream stream_options n seed max_tokens temperature "
    "logit_bias logprobs top_logprobs echo partial store user functions input".split()
)
BODIES = st.dictionaries(FIELDS, VALUES, max_size=5) | VALUES


@pytest.mark.parametrize("path", ["chat/completions", "completions", "tokenizers/estimate-token-count"])
def test_no_body_is_a_failure_of_ours(serve: Serve, path: str) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    with httpx.Client(base_url=f"{server.url}/v1/", timeout=20) as client:

        @settings(max_examples=200, deadline=None)
        @given(BODIES)
        def check(body: object) -> None:
            content = json.dumps(body).encode()  # with NaN and lone surrogates, as careless clients write them
            response = client.post(path, content=content, headers={"content-type": "application/json"})
            assert response.status_code in (200, 400, 404), response.text
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        check()
    assert post(server).status_code == 200
