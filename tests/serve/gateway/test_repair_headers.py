"""Repairs as clients and operators see them: headers, comments in streams, metrics, and unchanged SDKs."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import openai
import pytest

from chogori.chat.tool_call_events import Marker
from chogori.serve.gateway.config import HttpBackendConfig
from chogori.serve.gateway.http_backend import HttpBackend
from tests.chat.misbehaving_server import Behaviour, chunk, events, said, stream, usage
from tests.serve.conftest import Serve
from tests.serve.gateway.program_server import ProgramServer
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import ready

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
FUNCTION: dict[str, Any] = {"name": "forecast", "parameters": SCHEMA}
USER = {"role": "user", "content": "Weather?"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER], "tools": [{"type": "function", "function": FUNCTION}]},
    "/v1/responses": {"input": [USER], "tools": [{"type": "function", **FUNCTION}]},
    "/anthropic/v1/messages": {
        "messages": [USER], "max_tokens": 50, "tools": [{"name": "forecast", "input_schema": SCHEMA}]
    },
}  # fmt: skip
RAW = (
    f"{Marker.SECTION_BEGIN.value}{Marker.CALL_BEGIN.value}forecast:0{Marker.ARGUMENT_BEGIN.value}"
    f'{{"days": "3"}}{Marker.CALL_END.value}{Marker.SECTION_END.value}'
)
KINDS = "raw_markers=1, arguments=1, id=1"


@pytest.fixture(scope="module")
def gateway(program_server: ProgramServer, serve_for_module: Serve) -> LiveServer:
    program_server.reset(said())
    return ready(serve_for_module(HttpBackend(program_server.url, HttpBackendConfig())))


def raw(before: str = "") -> Behaviour:
    pieces = [before, *(RAW[i : i + 7] for i in range(0, len(RAW), 7))]
    chunks = [chunk({"content": piece}) for piece in pieces if piece]
    return stream(events(*chunks, chunk(finish="stop"), usage(9, 8)))


def ask(gateway: LiveServer, path: str, *, streamed: bool) -> httpx.Response:
    body = {"model": "kimi-k2", "stream": streamed, **BODIES[path]}
    answer = httpx.post(gateway.url + path, json=body, trust_env=False)
    assert answer.status_code == 200
    return answer


@pytest.mark.parametrize("path", BODIES)
def test_repairs_stand_in_a_header_and_at_the_end_of_a_stream(
    program_server: ProgramServer, gateway: LiveServer, path: str
) -> None:
    program_server.reset(raw())
    assert ask(gateway, path, streamed=False).headers["x-chogori-repairs"] == KINDS
    streamed = ask(gateway, path, streamed=True)
    assert streamed.headers["x-chogori-repairs"] == KINDS
    lines = [line for line in streamed.text.splitlines() if line]
    place = lines.index(f": chogori-repairs {KINDS}")
    assert (
        "response.completed" in lines[place + 1] or "message_stop" in lines[place + 1] or "[DONE]" in lines[place + 1]
    )


@pytest.mark.parametrize("path", BODIES)
def test_what_is_repaired_after_the_answer_began_stands_at_its_end_only(
    program_server: ProgramServer, gateway: LiveServer, path: str
) -> None:
    program_server.reset(raw("I look. "))
    streamed = ask(gateway, path, streamed=True)
    assert "x-chogori-repairs" not in streamed.headers
    assert f"\n: chogori-repairs {KINDS}\n" in streamed.text


@pytest.mark.parametrize("path", BODIES)
def test_where_nothing_is_repaired_nothing_is_said(
    program_server: ProgramServer, gateway: LiveServer, path: str
) -> None:
    program_server.reset(said("Fine."))
    for streamed in (False, True):
        answer = ask(gateway, path, streamed=streamed)
        assert "x-chogori-repairs" not in answer.headers
        assert "chogori-repairs" not in answer.text


def test_repairs_are_counted(program_server: ProgramServer, gateway: LiveServer) -> None:
    program_server.reset(raw())

    def counted() -> dict[str, float]:
        text = httpx.get(f"{gateway.url}/metrics", trust_env=False).text
        lines = [line.split() for line in text.splitlines() if line.startswith("chogori_repairs_total{")]
        return {name.split('"')[1]: float(value) for name, value in lines}

    before = counted()
    ask(gateway, "/v1/chat/completions", streamed=False)
    after = counted()
    changed = {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind, 0)}
    assert changed == {"raw_markers": 1, "arguments": 1, "id": 1}


def test_the_official_clients_read_on_over_the_comment(program_server: ProgramServer, gateway: LiveServer) -> None:
    program_server.reset(raw("I look. "))
    tools: Any = BODIES["/v1/chat/completions"]["tools"]
    user: Any = USER
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        with client.chat.completions.stream(model="kimi-k2", messages=[user], tools=tools) as told:
            message = told.get_final_completion().choices[0].message
        assert message.content == "I look. "
        assert message.tool_calls is not None
        assert message.tool_calls[0].function.arguments == '{"days": 3}'
        with client.responses.stream(model="kimi-k2", input="Weather?", tools=BODIES["/v1/responses"]["tools"]) as told:
            assert [item.type for item in told.get_final_response().output] == ["message", "function_call"]
    with anthropic.Anthropic(base_url=f"{gateway.url}/anthropic", api_key="none") as client:
        tools = BODIES["/anthropic/v1/messages"]["tools"]
        with client.messages.stream(model="kimi-k2", messages=[user], max_tokens=50, tools=tools) as told:
            blocks = told.get_final_message().content
        assert [block.type for block in blocks] == ["text", "tool_use"]
