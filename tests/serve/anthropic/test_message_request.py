"""What the body of a message asks for, and what is refused, over a real socket."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend

USER = {"role": "user", "content": "Hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Weather of a city", "input_schema": SCHEMA}


def post(server: LiveServer, **changes: object) -> httpx.Response:
    body = {"model": "kimi-test", "max_tokens": 64, "messages": [USER], **changes}
    return httpx.post(f"{server.url}/v1/messages", json=body, timeout=20)


def asked(backend: ScriptedBackend) -> ChatRequest:
    request = backend.completer.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


def refusal(response: httpx.Response, status: int = 400, kind: str = "invalid_request_error") -> str:
    body = response.json()
    assert response.status_code == status, response.text
    assert set(body) == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"], set(body["error"])) == ("error", kind, {"type", "message"})
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    return body["error"]["message"]


# ---- what is asked ------------------------------------------------------------------------------------------------


def test_every_parameter_reaches_the_completer(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    response = post(
        serve(backend),
        system="Be brief.",
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        stop_sequences=["END", "\n"],
        temperature=0.5,
        top_p=0.9,
        top_k=40,
    )
    assert response.status_code == 200, response.text
    request = asked(backend)
    assert [message.role for message in request.messages] == ["system", "user"]
    (tool,) = request.tools
    assert (tool.name, tool.description, tool.parameters) == ("get_weather", "Weather of a city", SCHEMA)
    assert request.tool_choice == NamedTool(name="get_weather")
    assert not request.parallel_tool_calls
    assert (request.model, request.request_id) == ("kimi-test", response.headers["request-id"])
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.stop) == (64, ("END", "\n"))
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (pytest.approx(0.3), 0.9, 40)
    assert "x-chogori-ignored" not in response.headers


@pytest.mark.parametrize(
    ("choice", "expected", "is_parallel"),
    [
        (None, "auto", True),
        ({"type": "auto"}, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any"}, "required", True),
        ({"type": "any", "disable_parallel_tool_use": False}, "required", True),
        ({"type": "none"}, "none", True),
    ],
)
def test_tool_choices(serve: Serve, choice: object, expected: str, is_parallel: bool) -> None:
    backend = ScriptedBackend.saying("Hi")
    assert post(serve(backend), tools=[WEATHER], tool_choice=choice).status_code == 200
    assert (asked(backend).tool_choice, asked(backend).parallel_tool_calls) == (expected, is_parallel)


@pytest.mark.parametrize(
    ("temperature", "factor", "expected"),
    [(None, 0.6, 0.6), (1.0, 0.6, 0.6), (0.5, 0.6, 0.3), (0, 0.6, 0.0), (None, 1.0, 1.0), (0.5, 1.0, 0.5)],
)
def test_temperatures_are_multiplied_by_the_factor_of_the_settings(
    serve: Serve, temperature: float | None, factor: float, expected: float
) -> None:
    backend = ScriptedBackend.saying("Hi")
    changes = {} if factor == 0.6 else {"anthropic_temperature_factor": factor}
    assert post(serve(backend, **changes), temperature=temperature).status_code == 200
    assert asked(backend).sampling.temperature == pytest.approx(expected)


def test_an_output_format_is_the_answers_schema(serve: Serve) -> None:
    backend = ScriptedBackend.saying("{}")
    server = serve(backend)
    output_format = {"type": "json_schema", "schema": SCHEMA}
    assert post(server, output_config={"format": output_format}).status_code == 200
    assert asked(backend).response_format == JsonFormat(schema=SCHEMA)
    assert post(server, output_format=output_format).status_code == 200
    assert asked(backend).response_format == JsonFormat(schema=SCHEMA)
    different = {"type": "json_schema", "schema": {"type": "object"}}
    both = post(server, output_format=output_format, output_config={"format": different})
    assert refusal(both).startswith("output_format: differs from output_config.format")


def test_what_has_no_effect_is_accepted_and_named(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend)
    response = post(
        server,
        thinking={"type": "enabled", "budget_tokens": 1024},
        metadata={"user_id": "u"},
        service_tier="auto",
        context_management={"edits": []},
        output_config={"effort": "low"},
        tools=[{**WEATHER, "defer_loading": True}],
    )
    assert response.status_code == 200, response.text
    ignored = "context_management, metadata, output_config.effort, service_tier, thinking, tools.defer_loading"
    assert response.headers["x-chogori-ignored"] == ignored
    plain = post(server, thinking={"type": "disabled"})
    assert plain.status_code == 200
    assert "x-chogori-ignored" not in plain.headers


def test_headers_of_versions_and_betas_are_accepted(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    body = {"model": "kimi-test", "max_tokens": 64, "messages": [USER]}
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14,other"}
    assert httpx.post(f"{server.url}/v1/messages?beta=true", json=body, headers=headers).status_code == 200


def test_fields_that_a_client_echoes_in_blocks_are_let_pass(serve: Serve) -> None:
    echoed = {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "a", "citations": None},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}, "caller": {"type": "direct"}},
        ],
    }
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1"}]}
    assert post(serve(ScriptedBackend.saying("Hi")), messages=[USER, echoed, result]).status_code == 200


# ---- what is refused ----------------------------------------------------------------------------------------------

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}
TEXT = {"type": "text", "text": "a"}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [TEXT, IMAGE]}
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ({"max_tokens": "64"}, "max_tokens: Input should be a valid integer"),
    ({"temperature": 1.1}, "temperature: Input should be less than or equal to 1"),
    ({"top_p": 0}, "top_p: Input should be greater than 0"),
    ({"stop_sequences": [""]}, "stop_sequences.0: String should have at least 1 character"),
    ({"messages": []}, "messages: List should have at least 1 item"),
    ({"messages": [{**USER, "role": "tool"}]}, "messages.0: Input should be an object whose role is 'user'"),
    ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    ({"messages": [{**USER, "content": None}]}, "messages.0.content: Input should be a valid string or a list"),
    ({"messages": [{**USER, "content": [TEXT, IMAGE]}]}, "messages.0.content.1: blocks of type 'image' cannot be read"),
    ({"messages": [{**USER, "content": [DOCUMENT]}]}, "messages.0.content.0: blocks of type 'document' cannot be read"),
    ({"messages": [{**USER, "content": [RESULT]}]}, "messages.0.content.0.tool_result.content.1: blocks of type 'im"),
    ({"messages": [{**USER, "content": [{**TEXT, "text": 5}]}]}, "messages.0.content.0.text.text: Input should be a"),
    ({"system": [IMAGE]}, "system.0: blocks of type 'image' cannot be read"),
    (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "tools.0: tools of type 'web_search_20250305'",
    ),
    ({"tools": [{**WEATHER, "name": "a.b"}]}, "tools.0.name: String should match pattern"),
    ({"tools": [WEATHER, WEATHER]}, "tools.1.name: an earlier tool is named 'get_weather' too"),
    ({"tools": [{"name": "f", "input_schema": {}}]}, "tools.0.input_schema: type is None; expected 'object'"),
    ({"tool_choice": {"type": "any"}}, "tool_choice: type is 'any', but tools is empty"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.tool.name: Field required"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name: 'f' is no tool; declared"),
    ({"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}, "mcp_servers: List should have at most 0"),
    ({"container": "c"}, "container: Extra inputs are not permitted"),
    ({"presence_penalty": 1}, "presence_penalty: Extra inputs are not permitted"),
    ({"Presence-Penalty": 1}, "Presence-Penalty: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("changes", "problem"), REFUSED)
def test_what_cannot_be_is_refused_where_it_stands(serve: Serve, changes: dict[str, object], problem: str) -> None:
    backend = ScriptedBackend.saying("Hi")
    assert refusal(post(serve(backend), **changes)).startswith(problem)
    assert not backend.completer.asked


@pytest.mark.parametrize("field", ["model", "max_tokens", "messages"])
def test_what_is_required(serve: Serve, field: str) -> None:
    body = {"model": "kimi-test", "max_tokens": 64, "messages": [USER]}
    del body[field]
    server = serve(ScriptedBackend.saying("Hi"))
    response = httpx.post(f"{server.url}/anthropic/v1/messages", json=body)
    assert refusal(response) == f"{field}: Field required"


def test_an_unknown_model_is_not_found(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"), model_aliases={"claude-sonnet-4": "kimi-test"})
    assert "'claude-3' does not exist here" in refusal(post(server, model="claude-3"), 404, "not_found_error")
    assert post(server, model="claude-sonnet-4").json()["model"] == "kimi-test"


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (
            b"{",
            "The request body is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2",
        ),
        (b"[]", "body: Input should be"),
        (b'"\\ud800"', "not valid UTF-8 text"),
        (b'{"model": "\\ud800"}', "not valid UTF-8 text"),
        (b"\xff", "The request body is not valid JSON: it is not valid UTF-8 text"),
        (b"[" * 100_000, "The request body is not valid JSON: it is nested too deeply"),
    ],
)
def test_a_body_that_is_no_request(serve: Serve, sent: bytes, problem: str) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    for path in ("/v1/messages", "/anthropic/v1/messages/count_tokens"):
        response = httpx.post(server.url + path, content=sent, headers={"content-type": "application/json"})
        assert problem in refusal(response)


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["type", "role", "content", "text", "id", "input", "x"]), inner, max_size=4),
    ),
    max_leaves=12,
)
FIELDS = [
    "model",
    "max_tokens",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "stop_sequences",
    "temperature",
    "thinking",
    "output_config",
    "metadata",
    "cache_control",
    "other",
]


def test_no_body_makes_the_server_fail(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))

    with httpx.Client(base_url=server.url) as client:

        @given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=3))
        @settings(max_examples=300)
        def check(changes: dict[str, Any]) -> None:
            body = {"model": "kimi-test", "max_tokens": 64, "messages": [USER], **changes}
            response = client.post("/v1/messages", json=body)
            assert response.status_code in (200, 400, 404), response.text
            if response.status_code == 400:
                assert refusal(response)

        check()


def test_deep_inputs_are_read_or_refused(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    for depth in (10, 500, 900, 980, 2000):
        nested = json.loads("[" * 10 + "]" * 10)
        call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": nested}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1"}
        messages = [USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        body = json.dumps({"model": "kimi-test", "max_tokens": 64, "messages": messages})
        sent = body.replace("[" * 10 + "]" * 10, "[" * depth + "]" * depth)
        response = httpx.post(f"{server.url}/v1/messages", content=sent, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400), (depth, response.text)
