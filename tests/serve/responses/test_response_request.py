"""What a request of the Responses API asks of the Completer, what it is told of itself, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool
from chogori.chat.messages import ToolSpec
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA}
CLOCK = {"type": "function", "name": "clock"}


def post(server: LiveServer, **body: object) -> httpx.Response:
    body = {"model": "kimi-test", "input": "Hello", **body}
    return httpx.post(f"{server.url}/v1/responses", json=body, timeout=20)


def asked(backend: ScriptedBackend) -> ChatRequest:
    request = backend.completer.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


def test_every_parameter_reaches_the_completer_and_comes_back(serve: Serve) -> None:
    backend = ScriptedBackend.saying("{}")
    text_format = {"type": "json_schema", "name": "weather", "schema": SCHEMA, "strict": True, "description": None}
    given: dict[str, Any] = {
        "instructions": "Be brief.",
        "tools": [{**WEATHER, "strict": True}],
        "tool_choice": {"type": "function", "name": "get_weather"},
        "parallel_tool_calls": False,
        "max_output_tokens": 11,
        "temperature": 0.25,
        "top_p": 0.5,
        "top_logprobs": 3,
        "metadata": {"who": "ada"},
    }
    response = post(serve(backend), text={"format": text_format}, **given)
    assert response.status_code == 200, response.text
    echoed = response.json()
    assert {name: echoed[name] for name in given} == given
    assert echoed["text"]["format"] == text_format

    request = asked(backend)
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
    ]
    assert request.tools == (
        [ToolSpec(name="get_weather", description="Weather of a city", parameters=SCHEMA)]  # declared as in chats
    )
    assert (request.tool_choice, request.parallel_tool_calls) == (NamedTool(name="get_weather"), False)
    assert request.response_format == JsonFormat(schema=SCHEMA)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (11, 0.25, 0.5)
    assert (sampling.logprobs, sampling.top_logprobs) == (True, 3)
    assert (request.model, request.request_id) == ("kimi-test", response.headers["x-request-id"])


def test_defaults_and_nulls_are_the_same(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend, default_temperature=0.5)
    names = (
        "instructions tools tool_choice parallel_tool_calls max_output_tokens temperature top_p top_logprobs include "
        "text stream stream_options metadata store truncation background previous_response_id conversation "
        "reasoning user"
    )
    first = post(server).json()
    response = post(server, **dict.fromkeys(names.split()))
    assert response.headers.get("x-chogori-ignored") is None
    drawn = ("id", "created_at", "completed_at", "output")
    assert {k: v for k, v in first.items() if k not in drawn} == {
        k: v for k, v in response.json().items() if k not in drawn
    }
    one, other = (request for request in backend.completer.asked if isinstance(request, ChatRequest))
    assert (one.messages, one.sampling, one.tool_choice) == (other.messages, other.sampling, other.tool_choice)
    assert first["temperature"] == one.sampling.temperature == 0.5
    assert (first["store"], first["tool_choice"], first["truncation"]) == (False, "auto", "disabled")


def test_a_json_object_is_one_without_a_schema(serve: Serve) -> None:
    backend = ScriptedBackend.saying("{}")
    post(serve(backend), text={"format": {"type": "json_object"}})
    assert asked(backend).response_format == JsonFormat()


def test_allowed_tools_are_the_only_ones_that_the_model_sees(serve: Serve) -> None:
    backend = ScriptedBackend.saying(calls=[("clock", "{}")])
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}
    response = post(serve(backend), tools=[WEATHER, CLOCK], tool_choice=choice).json()
    assert ([tool.name for tool in asked(backend).tools], asked(backend).tool_choice) == (["clock"], "required")
    assert (len(response["tools"]), response["tool_choice"]) == (2, choice)


def test_responses_are_never_stored_and_say_so(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    response = post(server, store=True).json()
    assert response["store"] is False
    assert httpx.get(f"{server.url}/v1/responses/{response['id']}").status_code == 404


def test_parameters_without_effect_are_named_in_a_header(serve: Serve) -> None:
    server = serve(ScriptedBackend.saying("Hi"))
    given = {"reasoning": {"effort": "low"}, "user": "ada", "text": {"verbosity": "low"}, "store": False}
    for stream in (False, True):
        response = post(server, stream=stream, include=["reasoning.encrypted_content"], **given)
        assert response.status_code == 200
        assert response.headers["x-chogori-ignored"] == "reasoning, text.verbosity, user"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": None}, "input", "a valid string or a list of items"),
        ({"input": []}, "input", "empty array"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role", "'user'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "reads text only"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": ""}]}, "input[0].call_id", "earlier"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "expected the item itself"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "'web_search' cannot run here; expected function"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name", "required"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].name", "an earlier tool has too"),
        ({"tools": [CLOCK] * 129}, "tools", "maximum length 128"),
        ({"tool_choice": "required"}, "tool_choice", "tools is empty"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": [CLOCK]}, "tool_choice", "declared are clock"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}},
            "tool_choice.tools",
            "allows 'f'; declared are no tools",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "Expected a value >= 1, but got 0"),
        ({"temperature": 2.5}, "temperature", "Expected a value <= 2, but got 2.5"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "required"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "text, json_object or json_schema"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "function or allowed_tools"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name", "required"),
        (
            {"tool_choice": "any"},
            "tool_choice",
            "Invalid value: 'any'. Supported values are: 'auto', 'none' and 'required'.",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "expected the earlier items in input"),
        ({"conversation": "conv_1"}, "conversation", "expected the earlier items in input"),
        ({"background": True}, "background", "expected false"),
        ({"truncation": "auto"}, "truncation", "items are never left out"),
        ({"stream": False, "stream_options": {"include_obfuscation": False}}, "stream_options", "stream is not true"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "Unknown parameter"),
        ({"max_tokens": 5}, "max_tokens", "Unknown parameter: 'max_tokens'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused_by_name(serve: Serve, body: dict[str, Any], param: str, words: str) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend)
    for stream in (False, True):
        response = post(server, **{"stream": stream, **body})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert words in error["message"]
    assert not backend.completer.asked
