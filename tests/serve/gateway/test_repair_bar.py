"""Two thousand requests through the gateway, over sockets, to a server that breaks calls in every known way.

What leaves is valid by an independent validator, or an error that says so; a call stays the call that was meant, and
text stays text to the byte.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from chogori.chat.completer import ChatRequest, NamedTool
from chogori.chat.language_samples import SAMPLES
from chogori.chat.messages import Message, ToolSpec
from chogori.chat.tokenizer import Tokenizer
from chogori.engine.constraints import Constraints
from chogori.engine.vocabulary import Vocabulary
from chogori.serve.gateway.config import HttpBackendConfig, RepairConfig
from chogori.serve.gateway.http_backend import HttpBackend
from chogori.serve.tool_call_validity import validity_of
from tests.chat.misbehaving_server import Behaviour, stream
from tests.engine.constraint_driving import read_calls, write
from tests.engine.random_schemas import random_tool_schema
from tests.serve.conftest import Serve
from tests.serve.gateway.broken_calls import BREAKERS, FOREIGN_ID, NOTE_SCHEMA, TEXTS, sound
from tests.serve.gateway.program_server import Body, ProgramServer
from tests.serve.gateway.wires import Call, Meant, Shares, Wire
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import ready

NUM_REQUESTS = 2_000
AT_ONCE = 16
GETS_IT_RIGHT = 0.7
"""Chance that the program makes a call right when it is asked again."""
SHAPES = ("OpenAI", "OpenAI, streamed", "Anthropic", "Anthropic, streamed")
Answered = tuple[str, list[tuple[str, Any]], str]
"""Content, calls and finish reason, in OpenAI's words."""


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    """Valid calls of random schemas, written by random choice under the engine's grammar."""
    vocabulary = Vocabulary(Tokenizer.train(SAMPLES.values(), vocab_size=500), 520)
    constraints = Constraints(vocabulary)
    wishes = {vocabulary.byte_ids[byte]: 50.0 for byte in b'"}]'}
    written: list[Call] = []
    for seed in range(150):
        schema = random_tool_schema(random.Random(seed))
        name = ("get-weather", "search_files", "RunTests", "a", "book")[seed % 5] + str(seed)
        request = ChatRequest(
            messages=[Message(role="user", content="go")],
            tools=[ToolSpec(name=name, parameters=schema)],
            tool_choice=NamedTool(name=name),
        )
        tokens = write(
            constraints.of_chat(request, first_index=0), vocabulary, max_tokens=300,
            rng=np.random.default_rng(seed), wishes=wishes,
        ).tokens  # fmt: skip
        _, found = read_calls([token for token in tokens if token not in vocabulary.end_ids], vocabulary)
        tool = request.tools[0]
        # Random digits make numbers that no program can hold.
        sane = [arguments for _, _, arguments in found if validity_of(tool, arguments) == "valid"]
        written += [Call(name=name, arguments=arguments, schema=schema) for arguments in sane]
    assert len(written) > 100
    return written


class Program:
    """Answers request number N by breaker N modulo their number, and what asks again rightly or wrongly by chance."""

    def __init__(self, calls: list[Call]) -> None:
        self.cases = [self._case(number, calls) for number in range(NUM_REQUESTS)]

    @staticmethod
    def _case(number: int, calls: list[Call]) -> tuple[str, Meant, Wire, list[Call]]:
        random_ = random.Random(number)
        declared = random_.sample(calls, random_.randint(1, 5))
        names = [call.name for call in declared]
        declared = [call for i, call in enumerate(declared) if call.name not in names[:i]]
        note = Call(name="note", arguments='{"text": "x", "unit": "metric"}', schema=NOTE_SCHEMA)
        declared.append(note)
        if number % 10 == 0:
            text = random_.choice(TEXTS)
            meant = Meant(content=text)
            finish = random_.choice(["stop", "stop", "tool_calls"]) if text else "stop"
            return "text", meant, Wire(content=text, finish=finish), declared
        chosen = random_.sample(declared, min(len(declared), random_.choice([1, 1, 2, 3])))
        content = random_.choice(["", "", "I look it up.\n", "見てみます。 "])
        meant = Meant(calls=tuple(chosen), content=content)
        names = list(BREAKERS)
        random_.shuffle(names)
        for name in (list(BREAKERS)[number % len(BREAKERS)], *names):
            wire = BREAKERS[name](random_, meant)
            if wire is not None:
                return name, wire.expected or meant, wire, declared
        raise AssertionError("some breaker fits")

    def answer(self, path: str, body: Body) -> Behaviour:
        messages = body["messages"]
        number = int(messages[0]["content"].split()[-1])
        _, meant, wire, declared = self.cases[number]
        last = messages[-1]["content"]
        if "Your last answer" not in last:
            return stream(wire.body(random.Random(number)))
        # Named where the gateway knew the tool; else whichever call of those meant is not yet there.
        random_ = random.Random(zlib.crc32(json.dumps(body).encode()))
        choice = body["tool_choice"]
        wanted = [
            call for call in meant.calls if choice == "required" or call.name == choice["function"]["name"]
        ] or declared
        again = Meant(calls=(wanted[0],))
        if random_.random() < GETS_IT_RIGHT:
            return stream(sound(again).body(random_))
        broken = [BREAKERS[name](random_, again) for name in ("truncated", "missing_required", "undeclared")]
        refusing = Wire(content="I would rather not.")
        return stream(random_.choice([refusing, *(one for one in broken if one is not None)]).body(random_))


@pytest.fixture(scope="module")
def program(calls: list[Call]) -> Program:
    return Program(calls)


@pytest.fixture(scope="module")
def gateway(program_server: ProgramServer, program: Program, serve_for_module: Serve) -> LiveServer:
    program_server.reset(stream())
    program_server.answer = program.answer
    config = HttpBackendConfig(max_retries=0)
    return ready(serve_for_module(HttpBackend(program_server.url, config, repair=RepairConfig(max_rounds=2))))


async def ask(client: httpx.AsyncClient, number: int, declared: list[Call]) -> Answered | None:
    """One request in one of the shapes; None where it was answered with an error."""
    shape = SHAPES[number % len(SHAPES)]
    streamed = shape.endswith("streamed")
    body: dict[str, Any] = {
        "model": "kimi-k2",
        "messages": [{"role": "user", "content": f"case {number}"}],
        "max_tokens": 1000,
        "stream": streamed,
    }
    if shape.startswith("OpenAI"):
        body["tools"] = [
            {"type": "function", "function": {"name": call.name, "parameters": call.schema}} for call in declared
        ]
        response = await client.post("/v1/chat/completions", json=body)
        read = _openai_stream if streamed else _openai_whole
    else:
        body["tools"] = [{"name": call.name, "input_schema": call.schema} for call in declared]
        response = await client.post("/anthropic/v1/messages", json=body)
        read = _anthropic_stream if streamed else _anthropic_whole
    if response.status_code != 200:
        assert response.status_code == 502, response.text
        assert "could not be put right" in response.json()["error"]["message"]
        return None
    return read(response)


def _openai_whole(response: httpx.Response) -> Answered:
    (choice,) = response.json()["choices"]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    ids = [call["id"] for call in message.get("tool_calls") or ()]
    assert len(ids) == len(set(ids))
    for i, call in enumerate(calls):
        assert ids[i] in (f"functions.{call['name']}:{i}", FOREIGN_ID)
    told = [(call["name"], json.loads(call["arguments"])) for call in calls]
    return message["content"] or "", told, choice["finish_reason"]


def _openai_stream(response: httpx.Response) -> Answered | None:
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    if "error" in json.loads(data[-1]) if data[-1] != "[DONE]" else False:
        assert "could not be put right" in json.loads(data[-1])["error"]["message"]
        return None
    assert data[-1] == "[DONE]"
    content, reason = "", ""
    calls: list[tuple[str, str]] = []
    for one in map(json.loads, data[:-1]):
        (choice,) = one["choices"]
        content += choice["delta"].get("content") or ""
        for delta in choice["delta"].get("tool_calls") or ():
            if "id" in delta:
                assert delta["index"] == len(calls)
                assert delta["id"] in (f"functions.{delta['function']['name']}:{len(calls)}", FOREIGN_ID)
                calls.append((delta["function"]["name"], ""))
            calls[delta["index"]] = (
                calls[delta["index"]][0],
                calls[delta["index"]][1] + delta["function"]["arguments"],
            )
        reason = choice["finish_reason"] or reason
    return content, [(name, json.loads(arguments)) for name, arguments in calls], reason


_REASONS = {"end_turn": "stop", "tool_use": "tool_calls", "max_tokens": "length"}


def _anthropic_whole(response: httpx.Response) -> Answered:
    return _of_blocks(response.json()["content"], response.json()["stop_reason"])


def _anthropic_stream(response: httpx.Response) -> Answered | None:
    blocks: list[dict[str, Any]] = []
    pieces: list[str] = []
    reason = ""
    for line in response.text.splitlines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line[6:])
        match event["type"]:
            case "error":
                assert "could not be put right" in event["error"]["message"]
                return None
            case "content_block_start":
                blocks.append(event["content_block"])
                pieces = []
            case "content_block_delta":
                pieces.append(event["delta"].get("text") or event["delta"].get("partial_json") or "")
            case "content_block_stop":
                if blocks[-1]["type"] == "text":
                    blocks[-1]["text"] = "".join(pieces)
                else:
                    blocks[-1]["input"] = json.loads("".join(pieces))
            case "message_delta":
                reason = event["delta"]["stop_reason"]
            case _:
                pass
    return _of_blocks(blocks, reason)


def _of_blocks(blocks: list[dict[str, Any]], reason: str) -> Answered:
    content = "".join(block["text"] for block in blocks if block["type"] == "text")
    calls = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    return content, calls, _REASONS[reason]


def judged(case: tuple[str, Meant, Wire, list[Call]], answered: Answered | None) -> str:
    """How a request ended: valid, error or left out; AssertionError for what must not be."""
    _, meant, _, declared = case
    if answered is None:
        assert meant.calls, "a text became an error"
        return "error"
    content, told, reason = answered
    schemas = {call.name: call.schema for call in declared}
    for name, arguments in told:
        jsonschema.Draft202012Validator(schemas[name]).validate(arguments)
    expected = [(call.name, call.value) for call in meant.calls]
    assert told == expected[: len(told)]
    assert content.strip() == meant.content.strip()
    if len(told) < len(expected):
        assert reason == "length"
        return "left out"
    assert reason in (("tool_calls", "length") if told else ("stop",))
    return "valid"


def test_every_call_that_leaves_is_valid_and_is_the_one_that_was_meant(gateway: LiveServer, program: Program) -> None:
    shares = Shares()
    faults: list[str] = []

    async def one(client: httpx.AsyncClient, places: asyncio.Semaphore, number: int) -> None:
        case = program.cases[number]
        async with places:
            try:
                shares.count(case[0], judged(case, await ask(client, number, case[3])))
            except (AssertionError, jsonschema.ValidationError) as fault:
                faults.append(f"{case[0]}, request {number}, {SHAPES[number % 4]}: {fault}"[:1000])

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=60, limits=limits) as client:
            places = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for number in range(NUM_REQUESTS):
                    group.create_task(one(client, places, number))

    asyncio.run(all_of_them())
    for breaker, counts in sorted(shares.counts.items()):
        print(f"{breaker:24}", counts)
    total = shares.total()
    print("all", total)
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:10]])
    assert sum(total.values()) == NUM_REQUESTS
    assert set(shares.counts) == {"text", *BREAKERS}
    assert total["valid"] > 0.93 * NUM_REQUESTS
