"""Claude Code, Kimi Code and kimi-cli, as their registries give them, hold a conversation with a live server."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from jsonschema import Draft202012Validator

from chogori.chat.completer import ChatRequest, Event, TextRequest, ToolCallBegin, ToolCallDelta
from chogori.chat.messages import ToolCall
from chogori.cli.local_model import LocalBackend
from chogori.serve.backend import Gauges, ModelCard
from tests.serve.coding_agents import ClaudeCode, CodingAgent, KimiCli, KimiCode, Served, ask
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import local_backend, ready
from tests.serve.scripted_backend import Asked, Reply, ScriptedBackend, ScriptedCompleter

CLAUDE_CODE, KIMI_CODE, KIMI_CLI = ClaudeCode(), KimiCode(), KimiCli()
ROUTES = {
    "anthropic": "/messages",
    "kimi": "/v1/chat/completions",
    "openai_legacy": "/v1/chat/completions",
    "openai_responses": "/v1/responses",
}
"""The route that each API of an agent's configuration ends at."""
CONVERSATIONS = [
    (CLAUDE_CODE, "anthropic"),
    (KIMI_CODE, "kimi"),
    (KIMI_CODE, "openai_responses"),
    (KIMI_CODE, "anthropic"),
    (KIMI_CLI, "kimi"),
    (KIMI_CLI, "openai_legacy"),
]
RANDOM_CONVERSATIONS = [(CLAUDE_CODE, "anthropic"), (KIMI_CODE, "kimi"), (KIMI_CLI, "kimi")]
NUM_CALLING_ANSWERS = 2
MAX_CALL_TOKENS = 250
CONTEXT_LENGTH = 16_384


def names(conversations: Sequence[tuple[CodingAgent, str]]) -> list[str]:
    return [f"{agent.name} over {api}" for agent, api in conversations]


def conversation(asked: Sequence[Asked]) -> list[ChatRequest]:
    """The requests with tools; an agent may also ask for a title."""
    return [request for request in asked if isinstance(request, ChatRequest) and request.tools]


def responses(server: LiveServer) -> Counter[tuple[str, str]]:
    """Responses by route and status, of the routes that the server has."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    found = [
        re.fullmatch(r'chogori_http_responses_total\{route="(.+)",status="(\d+)"\} ([\d.]+)', line) for line in lines
    ]
    return Counter(
        {
            (match[1], match[2]): int(float(match[3]))
            for match in found
            if match and match[1] not in ("unknown", "/ready", "/metrics")
        }
    )


def test_the_documentation_sets_what_the_tests_set() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    section = page.split("## Coding agents\n")[1].split("\n## ")[0]
    served = Served(url="http://127.0.0.1:8000", model="NAME", context_length=131_072)
    tried = CLAUDE_CODE.environment(served, "anthropic") | KIMI_CODE.environment(served, "kimi")
    told = re.findall(r"\b([A-Z][A-Z_]+)=([^\s`]+)", section)
    assert len(told) >= 10
    for variable, value in told:
        assert variable in tried
        assert value == tried[variable] or variable == "KIMI_MODEL_PROVIDER_TYPE"


@pytest.mark.parametrize(("agent", "api"), CONVERSATIONS, ids=names(CONVERSATIONS))
def test_an_agent_runs_a_command_for_the_model_and_prints_its_answer(
    serve: Serve, tmp_path: Path, agent: CodingAgent, api: str
) -> None:
    """The agent with the prompt and the tools that it always has. The shell must compute, so no text can be echoed."""
    command = "echo chogori-$((6*7))"

    def reply(request: Asked) -> Reply:
        assert isinstance(request, ChatRequest)
        last = request.messages[-1]
        if last.role == "tool":
            return Reply(pieces=["It said ", "chogori-42" if "chogori-42" in last.content else last.content, "!"])
        if agent.shell_tool in {tool.name for tool in request.tools}:
            return Reply(pieces=["Let me ", "look."], calls=[(agent.shell_tool, json.dumps({"command": command}))])
        return Reply(pieces=["A title"])

    completer = ScriptedCompleter(reply)
    server = serve(ScriptedBackend(completer))
    served = Served(url=server.url, model="kimi-test", context_length=131_072)
    outcome = ask(agent, "What is six times seven?", served, api=api, folder=tmp_path)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "It said chogori-42!" in outcome.stdout
    asked = conversation(completer.asked)
    first, second = (list(request.messages) for request in asked)
    # What was said stays as it was, so that the second request finds the first in the prefix cache.
    assert second[: len(first)] == first
    assert asked[1].tools == asked[0].tools
    said, told = second[len(first) :]
    assert (said.role, said.content, told.role) == ("assistant", "Let me look.", "tool")
    (call,) = said.tool_calls
    assert (call.name, json.loads(call.arguments)) == (agent.shell_tool, {"command": command})
    assert told.tool_call_id == call.id
    assert responses(server) == {(ROUTES[api], "200"): len(completer.asked)}


@pytest.mark.parametrize(("agent", "api"), RANDOM_CONVERSATIONS, ids=names(RANDOM_CONVERSATIONS))
def test_an_agent_objects_to_a_call_that_does_not_fit(
    serve: Serve, tmp_path: Path, agent: CodingAgent, api: str
) -> None:
    """So that its silence about the calls of random weights, below, says something."""

    def reply(request: Asked) -> Reply:
        assert isinstance(request, ChatRequest)
        if request.messages[-1].role == "tool":
            return Reply(pieces=["A pity."])
        return Reply(calls=[(request.tools[0].name, '{"no such argument": {"at": "all"}}')])

    completer = ScriptedCompleter(reply)
    server = serve(ScriptedBackend(completer))
    served = Served(url=server.url, model="kimi-test", context_length=131_072)
    outcome = ask(agent, "What is six times seven?", served, api=api, folder=tmp_path, small=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    last = conversation(completer.asked)[-1]
    assert (last.messages[-1].role, agent.objection in last.messages[-1].content) == ("tool", True)


@dataclass
class CallingEngine:
    """The engine, made to call tools in the first answers of a conversation and to end it then: random weights open a
    call now and then only. What they say in it is theirs."""

    engine: LocalBackend
    asked: list[ChatRequest] = field(default_factory=list[ChatRequest])
    calls: list[ToolCall] = field(default_factory=list[ToolCall])

    @property
    def models(self) -> Sequence[ModelCard]:
        return self.engine.models

    @property
    def completer(self) -> CallingEngine:
        return self

    def count_tokens(self, request: ChatRequest) -> int:
        return self.engine.count_tokens(request)

    def count_text(self, text: str) -> int:
        return self.engine.count_text(text)

    def gauges(self) -> Gauges:
        return self.engine.gauges()

    async def start(self) -> None:
        await self.engine.start()

    async def stop(self) -> None:
        await self.engine.stop()

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncIterator[Event]:
        assert isinstance(request, ChatRequest)
        self.asked.append(request)
        num_answers = sum(message.role == "assistant" for message in request.messages)
        sampling = replace(request.sampling, seed=num_answers)
        if num_answers < NUM_CALLING_ANSWERS:
            # At the limit the calls end, whole.
            asked = replace(request, tool_choice="required", sampling=replace(sampling, max_tokens=MAX_CALL_TOKENS))
        else:
            asked = replace(request, tool_choice="none", sampling=sampling)
        async for event in self.engine.completer.stream(asked):
            match event:
                case ToolCallBegin():
                    self.calls.append(ToolCall(id=event.id, name=event.name, arguments=""))
                case ToolCallDelta():
                    last = self.calls[-1]
                    self.calls[-1] = replace(last, arguments=last.arguments + event.arguments)
                case _:
                    pass
            yield event


@pytest.fixture(scope="module")
def engine(serve_for_module: Serve) -> tuple[LiveServer, CallingEngine]:
    backend = CallingEngine(local_backend(context_length=CONTEXT_LENGTH))
    return ready(serve_for_module(backend)), backend


@pytest.mark.parametrize(("agent", "api"), RANDOM_CONVERSATIONS, ids=names(RANDOM_CONVERSATIONS))
def test_an_agent_takes_every_call_of_random_weights(
    engine: tuple[LiveServer, CallingEngine], tmp_path: Path, agent: CodingAgent, api: str
) -> None:
    """Whatever the words are, the calls fit the agent's own schemas: by jsonschema, and by the agent's own word."""
    server, backend = engine
    backend.asked.clear()
    backend.calls.clear()
    before = responses(server)
    served = Served(url=server.url, model=backend.models[0].id, context_length=CONTEXT_LENGTH)
    outcome = ask(agent, "What is six times seven?", served, api=api, folder=tmp_path, small=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "API Error" not in outcome.stdout
    last = backend.asked[-1]
    schemas = {tool.name: tool.parameters for tool in last.tools}
    assert len(backend.calls) >= NUM_CALLING_ANSWERS
    for call in backend.calls:
        Draft202012Validator(dict(schemas[call.name])).validate(json.loads(call.arguments))
    echoed = [call for message in last.messages for call in message.tool_calls]
    assert [call.name for call in echoed] == [call.name for call in backend.calls]
    results = [message.content for message in last.messages if message.role == "tool"]
    assert len(results) == len(backend.calls)
    assert not [result for result in results if agent.objection in result]
    assert responses(server) - before == {(ROUTES[api], "200"): NUM_CALLING_ANSWERS + 1}
