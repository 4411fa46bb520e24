"""Which tools are sent where many are declared: the relevant ones, and never without those that must be there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.completer import ChatRequest, NamedTool, ToolChoice
from chogori.chat.messages import Message, ToolCall, ToolSpec, tool_from_openai
from chogori.errors import ConfigError
from chogori.serve.gateway.config import ToolsConfig
from chogori.serve.gateway.tool_ranking import relevance, with_relevant_tools, words_of
from tests.serve.conftest import Serve
from tests.serve.scripted_backend import ScriptedBackend


def tool(name: str, description: str = "", **parameters: str) -> ToolSpec:
    properties: Any = {key: {"type": "string", "description": words} for key, words in parameters.items()}
    return ToolSpec(name=name, description=description, parameters={"type": "object", "properties": properties})


TOOLS = [
    tool("getWeather", "Forecast for a place", city="Name of the town"),
    tool("send_email", "Write to somebody", recipient="Address", body="Text"),
    tool("search_flights", "Find connections by air", origin="Airport", destination="Airport"),
    tool("create_invoice", "Bill a customer", amount="Sum in euros"),
    tool("天気予報", "都市の天気を調べる", 都市="都市の名前"),
    tool("run_sql", "Query the database of orders", statement="SQL"),
]
BUILTIN = tool_from_openai({"type": "builtin_function", "function": {"name": "$web_search"}})


def asked(*said: str, tools: Any = TOOLS, choice: ToolChoice = "auto") -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=text) for text in said], tools=tools, tool_choice=choice)


def sent(request: ChatRequest, max_sent: int) -> list[str]:
    return [tool.name for tool in with_relevant_tools(request, ToolsConfig(max_sent=max_sent)).request.tools]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("What will the weather be?", "getWeather"),
        ("Please send emails to the team", "send_email"),
        ("I need a flight from this airport", "search_flights"),
        ("bill 30 euros to the customer", "create_invoice"),
        ("東京の天気はどうですか", "天気予報"),
        ("SELECT something from the orders database", "run_sql"),
    ],
)
def test_what_is_asked_for_is_sent(text: str, name: str) -> None:
    assert sent(asked(text), 1) == [name]


def test_only_the_last_messages_say_what_is_wanted_and_ties_keep_their_order() -> None:
    assert sent(asked("weather", "invoice", "flights", "email"), 3) == [
        "send_email",
        "search_flights",
        "create_invoice",
    ]
    assert sent(asked("hm"), 2) == ["getWeather", "send_email"]


def test_what_must_be_there_stays() -> None:
    called = Message(role="assistant", tool_calls=(ToolCall(id="functions.run_sql:0", name="run_sql", arguments="{}"),))
    result = Message(role="tool", content="3 rows", tool_call_id="functions.run_sql:0")
    request = asked("weather", tools=[*TOOLS, BUILTIN], choice=NamedTool(name="create_invoice"))
    request = replace(request, messages=[*request.messages, called, result])
    assert sent(request, 4) == ["getWeather", "create_invoice", "run_sql", "$web_search"]
    assert sent(request, 1) == ["create_invoice", "run_sql", "$web_search"]
    ranked = with_relevant_tools(request, ToolsConfig(max_sent=1))
    assert ranked.headers == {"x-chogori-tools": "3/7"}
    assert ranked.request.messages == request.messages


def test_within_a_turn_of_an_agent_the_tools_stay_the_same() -> None:
    request = asked("Find a flight and send an email about it")
    first = sent(request, 3)
    call = ToolCall(id="functions.send_email:0", name="send_email", arguments="{}")
    request = replace(request, messages=[*request.messages, Message(role="assistant", tool_calls=(call,))])
    assert sent(request, 3) == first


@given(
    names=st.lists(st.text(alphabet="abcXY_天気", min_size=1, max_size=8), unique=True, max_size=8),
    said=st.lists(st.text(alphabet="abc XY天気", max_size=12), min_size=1, max_size=4),
    max_sent=st.integers(1, 12),
)
def test_so_many_are_sent_in_order_and_enough_change_nothing(names: list[str], said: list[str], max_sent: int) -> None:
    tools = [tool(name, "abc 天気 " + name) for name in names]
    request = asked(*said, tools=tools)
    ranked = with_relevant_tools(request, ToolsConfig(max_sent=max_sent)).request
    assert len(ranked.tools) == min(len(tools), max_sent)
    assert list(ranked.tools) == [tool for tool in tools if tool in ranked.tools]
    if max_sent >= len(tools):
        assert ranked is request
    # Those sent are none the less relevant than those left out.
    scores = relevance(tools, [word for text in said[-3:] for word in words_of(text)]) if tools else []
    kept = [score for tool, score in zip(tools, scores, strict=True) if tool in ranked.tools]
    left = [score for tool, score in zip(tools, scores, strict=True) if tool not in ranked.tools]
    assert not left or min(kept) >= max(left)


def test_by_default_all_are_sent_and_no_header_says_so() -> None:
    request = asked("weather")
    ranked = with_relevant_tools(request, ToolsConfig())
    assert ranked.request is request
    assert ranked.headers == {}
    with pytest.raises(ConfigError, match=r"tools.max_sent is 0; expected at least 1"):
        ToolsConfig(max_sent=0)


def test_words() -> None:
    assert list(words_of("getHTTPServers2Go, send_emails: 天気予報 x 雪")) == [
        "get", "http", "servers2", "go", "send", "email", "天気", "気予", "予報", "x", "雪",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/anthropic/v1/messages"])
def test_every_api_sends_them_and_says_how_many(fresh_serve: Serve, path: str) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = fresh_serve(backend, tools=ToolsConfig(max_sent=2))
    message = {"role": "user", "content": "send an email about the weather"}
    body: dict[str, Any] = {"model": "kimi-test", "messages": [message], "max_tokens": 50}
    functions = [{"name": tool.name, "parameters": dict(tool.parameters)} for tool in TOOLS if tool.name.isascii()]
    if path == "/v1/responses":
        body = {"model": "kimi-test", "input": [message], "tools": [{"type": "function", **one} for one in functions]}
    elif path == "/v1/chat/completions":
        body["tools"] = [{"type": "function", "function": one} for one in functions]
    else:
        body["tools"] = [{"name": one["name"], "input_schema": one["parameters"]} for one in functions]
    for streamed in (False, True):
        answer = httpx.post(server.url + path, json={**body, "stream": streamed}, trust_env=False)
        assert answer.status_code == 200
        assert answer.headers["x-chogori-tools"] == "2/5"
        request = backend.completer.asked[-1]
        assert isinstance(request, ChatRequest)
        assert [tool.name for tool in request.tools] == ["getWeather", "send_email"]
