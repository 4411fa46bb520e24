"""The live server over the real engine with random weights, as the official SDKs drive it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from typing import Any

import anthropic
import httpx
import jsonschema
import openai
import pytest

from chogori.chat.messages import messages_from_openai
from chogori.chat.template import render
from chogori.chat.tokenizer import Tokenizer
from chogori.chat.tool_call_events import Marker
from chogori.cli.local_model import LocalBackend
from chogori.engine.completer import EngineCompleter
from tests.serve.chat_choices import streamed_choices, whole_choices
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.local_engine import local_backend, ready

Client = Any
"""An official client, OpenAI's or Anthropic's: its overloads know no unpacked bodies."""
USER: dict[str, Any] = {"role": "user", "content": "How is the weather on K2?"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Skardu", "東京", "Zürich"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "hourly": {"type": "boolean"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTIONS: list[Any] = [
    {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA},
    {"name": "climb.log-entry", "parameters": {"type": "object", "properties": {"note": {"type": "string"}}}},
]
SCHEMAS: dict[str, Any] = {function["name"]: function["parameters"] for function in FUNCTIONS}
TOOLS: list[Any] = [{"type": "function", "function": function} for function in FUNCTIONS]
RESPONSE_TOOLS: list[Any] = [{"type": "function", **function} for function in FUNCTIONS]
ANTHROPIC_TOOLS: list[Any] = [
    {"name": "get_weather", "description": "Weather of a city", "input_schema": SCHEMA},
    {"name": "note", "input_schema": {"type": "object", "properties": {"text": {"type": "string"}}}},
]
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}  # Anthropic's SDK no longer has the parameter
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": SCHEMA}}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [USER], "max_tokens": 60, "seed": 7}


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    return local_backend()


@pytest.fixture(scope="module")
def server(serve_for_module: Serve, backend: LocalBackend) -> LiveServer:
    return ready(serve_for_module(backend))


@pytest.fixture(scope="module")
def tokenizer(server: LiveServer, backend: LocalBackend) -> Tokenizer:
    assert isinstance(backend.completer, EngineCompleter)
    return backend.completer.tokenizer


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Generator[Client]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: LiveServer) -> Generator[Client]:
    url = f"{server.url}/anthropic"
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def text_of(answer: Any, choice: int = 0) -> str:
    return answer.choices[choice].message.content or ""


def check_calls(calls: Any) -> None:
    """Every call names a declared tool, and its arguments satisfy that tool's schema."""
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


# ---- chat completions --------------------------------------------------------------------------------------------

ASKED: dict[str, dict[str, Any]] = {
    "text": {},
    "greedy": {"temperature": 0},
    "every setting": {"top_p": 0.9, "presence_penalty": 1, "frequency_penalty": 0.5, "logit_bias": {"65": -100}},
    "tools, auto": {"tools": TOOLS},
    "tools, none": {"tools": TOOLS, "tool_choice": "none"},
    "tools, required": {"tools": TOOLS, "tool_choice": "required"},
    "tool, named": {"tools": TOOLS, "tool_choice": NAMED, "parallel_tool_calls": False},
    "JSON object": {"response_format": {"type": "json_object"}},
    "JSON of a schema": {"response_format": FORMAT},
    "log-probabilities": {"logprobs": True, "top_logprobs": 3},
    "log-probabilities and calls": {"tools": TOOLS, "tool_choice": "required", "logprobs": True},
    "three choices": {"n": 3},
    "three choices of calls": {"n": 3, "tools": TOOLS, "tool_choice": "required"},
    "stop": {"stop": ["e", "o"]},
    "no room": {"max_tokens": 1},
    "continued": {"messages": [USER, {"role": "assistant", "content": "It is", "partial": True}]},
}


@pytest.mark.parametrize("changes", ASKED.values(), ids=ASKED)
def test_a_seed_gives_one_answer_whole_and_streamed(client: Client, changes: dict[str, Any]) -> None:
    asked = {**CHAT, **changes}
    whole = client.chat.completions.create(**asked)
    chunks = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    streamed, usage = streamed_choices(chunks)
    assert streamed == whole_choices(whole)
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert len(whole.choices) == asked.get("n", 1)

    for choice in whole.choices:
        check_calls(choice.message.tool_calls or ())
        if asked.get("tool_choice") in ("required", NAMED):
            assert choice.finish_reason == "tool_calls"
            assert not choice.message.content
        if asked.get("tool_choice") == NAMED:
            assert [call.function.name for call in choice.message.tool_calls or ()] == ["get_weather"]
        if asked.get("tool_choice") == "none":
            assert choice.message.tool_calls is None
        if "response_format" in asked:
            schema = SCHEMA if asked["response_format"] is FORMAT else {"type": "object"}
            jsonschema.validate(json.loads(choice.message.content or ""), schema)


def test_a_call_that_the_model_opens_by_itself_is_valid(client: Client, tokenizer: Tokenizer) -> None:
    opens = {str(tokenizer.id_of(Marker.SECTION_BEGIN.value)): 100}
    for seed in range(5):
        answer = client.chat.completions.create(
            **{**CHAT, "seed": seed}, tools=TOOLS, tool_choice="auto", logit_bias=opens
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        check_calls(answer.choices[0].message.tool_calls)


def test_a_stop_text_cuts_the_answer_that_there_would_be(client: Client) -> None:
    whole = text_of(client.chat.completions.create(**CHAT))
    stop = next(character for character in whole[20:] if character.isascii() and character.isalpha())
    cut = client.chat.completions.create(**CHAT, stop=[stop])
    assert cut.choices[0].finish_reason == "stop"
    assert text_of(cut) == whole.partition(stop)[0]


def test_log_probabilities_are_of_the_tokens_that_were_written(client: Client) -> None:
    answer = client.chat.completions.create(**{**CHAT, "temperature": 0}, logprobs=True, top_logprobs=4)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert answer.usage is not None
    assert len(tokens) == answer.usage.completion_tokens == CHAT["max_tokens"]
    written = b"".join(bytes(token.bytes or ()) for token in tokens)
    assert written.decode(errors="replace") == text_of(answer)
    for token in tokens:
        # Greedy: nothing that may be written is likelier than what was.
        best = max(token.top_logprobs, key=lambda top: top.logprob)
        assert len(token.top_logprobs) == 4
        assert token.logprob <= best.logprob <= 0


def test_of_several_choices_the_first_is_the_one_that_is_asked_for_alone(client: Client) -> None:
    alone = client.chat.completions.create(**CHAT)
    three = client.chat.completions.create(**CHAT, n=3)
    assert text_of(three) == text_of(alone)
    assert len({text_of(three, choice) for choice in range(3)}) == 3


def test_answers_in_company_are_those_alone(client: Client, server: LiveServer) -> None:
    asked = [{**CHAT, **changes, "seed": seed, "max_tokens": 32} for seed, changes in enumerate(ASKED.values())]

    async def all_at_once() -> list[Any]:
        url = f"{server.url}/v1"
        client: Client
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(client.chat.completions.create(**body) for body in asked))

    together = asyncio.run(all_at_once())
    alone = [client.chat.completions.create(**body) for body in asked]
    assert [whole_choices(answer) for answer in together] == [whole_choices(answer) for answer in alone]


def test_a_partial_message_is_continued_where_it_ends(client: Client, tokenizer: Tokenizer) -> None:
    messages = [USER, {"role": "assistant", "content": "It is cold, and", "partial": True}]
    prompt = render(messages_from_openai(messages), tokenizer=tokenizer, add_generation_prompt=True).ids
    assert tokenizer.decode(prompt).endswith("It is cold, and")
    greedy: dict[str, Any] = {"model": "tiny", "max_tokens": 40, "temperature": 0}
    chat = client.chat.completions.create(**greedy, messages=messages)
    text = client.completions.create(**greedy, prompt=prompt)
    assert text_of(chat) == text.choices[0].text
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == len(prompt)


def test_a_repeated_prompt_is_found_in_the_cache(client: Client) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "Say it once more. " * 40}], "max_tokens": 2}
    usages = [client.chat.completions.create(**body).usage for _ in range(3)]
    counts = [usage.model_dump() for usage in usages if usage is not None]
    prompt = counts[0]["prompt_tokens"]
    # Whole blocks of 16 are kept, and the last token is always read. The system message may have been there before.
    assert [count["cached_tokens"] for count in counts[1:]] == [(prompt - 1) // 16 * 16] * 2
    assert counts[0]["cached_tokens"] < 96 < prompt
    assert [count["prompt_tokens_details"]["cached_tokens"] for count in counts] == [
        count["cached_tokens"] for count in counts
    ]


def tool_conversation(call_id: str) -> list[Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"東京"}'}}
    return [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": '{"sky": "clear"}'},
        {"role": "user", "content": "And tomorrow?"},
    ]


def test_ids_of_other_makers_are_read_as_the_models_own(client: Client) -> None:
    asked: dict[str, Any] = {**CHAT, "tools": TOOLS, "tool_choice": "required"}
    answers = [
        client.chat.completions.create(**{**asked, "messages": tool_conversation(call_id)})
        for call_id in ("call_Zx81", "functions.get_weather:0")
    ]
    calls = answers[0].choices[0].message.tool_calls or []
    assert [call.id.rpartition(":")[2] for call in calls] == [str(index) for index in range(1, len(calls) + 1)]
    assert whole_choices(answers[0]) == whole_choices(answers[1])

    history: list[Any] = [*tool_conversation("call_Zx81"), answers[0].choices[0].message]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "noted"} for call in calls]
    last = client.chat.completions.create(**{**asked, "messages": history})
    assert (last.choices[0].message.tool_calls or [])[0].id.endswith(f":{len(calls) + 1}")


# ---- counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"tools": TOOLS}], ids=["plain", "tools"])
def test_estimated_tokens_are_those_that_are_charged(client: Client, server: LiveServer, extra: dict[str, Any]) -> None:
    for messages in ([USER], tool_conversation("call_1")):
        body = {**CHAT, **extra, "messages": messages, "max_tokens": 1}
        estimate = httpx.post(f"{server.url}/v1/tokenizers/estimate-token-count", json=body).json()
        usage = client.chat.completions.create(**body).usage
        assert usage is not None
        assert estimate["data"]["total_tokens"] == usage.prompt_tokens


@pytest.mark.parametrize("extra", [{}, {"tools": ANTHROPIC_TOOLS, "system": "Be brief."}], ids=["plain", "tools"])
def test_counted_tokens_are_those_that_are_charged(claude: Client, extra: dict[str, Any]) -> None:
    counted = claude.messages.count_tokens(model="tiny", messages=[USER], **extra).input_tokens
    first, second = (claude.messages.create(model="tiny", max_tokens=1, messages=[USER], **extra) for _ in range(2))
    for usage in (first.usage, second.usage):
        assert counted == usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    assert second.usage.cache_read_input_tokens == (counted - 1) // 16 * 16


# ---- completions -------------------------------------------------------------------------------------------------


def test_texts_are_continued_and_echoed(client: Client, tokenizer: Tokenizer) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 30, "seed": 3, "logprobs": 2}
    texts = ["Once upon a time", "昔々"]
    plain = client.completions.create(**asked, prompt=texts)
    echoed = client.completions.create(**asked, prompt=texts, echo=True)
    assert [choice.text for choice in echoed.choices] == [
        text + choice.text for text, choice in zip(texts, plain.choices, strict=True)
    ]
    by_ids = client.completions.create(**asked, prompt=[tokenizer.bos_id, *tokenizer.encode(texts[0])])
    assert by_ids.choices[0].text == plain.choices[0].text
    assert by_ids.choices[0].logprobs == plain.choices[0].logprobs

    pieces = ["", ""]
    for chunk in client.completions.create(**asked, prompt=texts, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert pieces == [choice.text for choice in plain.choices]


@pytest.mark.parametrize("by_ids", [False, True], ids=["text", "ids"])
def test_a_text_is_scored_whole_and_streamed(client: Client, tokenizer: Tokenizer, by_ids: bool) -> None:
    """As harnesses score texts: the prompt echoed with log-probabilities, and nothing produced, or one token."""
    ids = tokenizer.encode("Once upon a time, 昔々")
    prompt = ids if by_ids else tokenizer.decode(ids)
    asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "temperature": 0, "logprobs": 1, "echo": True}
    scored = client.completions.create(**asked, max_tokens=0)
    assert scored.usage.completion_tokens == 0
    choice = scored.choices[0]
    assert (choice.finish_reason, choice.text) == ("length", tokenizer.decode(ids))
    logprobs = choice.logprobs
    assert logprobs.tokens == [tokenizer.decode([token]) for token in ids]
    assert logprobs.text_offset == [
        len(tokenizer.decode_bytes(ids[:i]).decode(errors="ignore")) for i in range(len(ids))
    ]
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    for logprob, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True):
        assert logprob <= max(top.values()) <= 0

    one_more = client.completions.create(**asked, max_tokens=1).choices[0].logprobs
    assert one_more.token_logprobs[:-1] == logprobs.token_logprobs
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, max_tokens=1, stream=True)]
    streamed = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for part in streamed for value in getattr(part, name)] == getattr(one_more, name)
    # What was read for a score is read anew for the next, and found by those who ask for none.
    again = client.completions.create(**asked, max_tokens=0)
    assert again.choices == scored.choices
    assert again.usage.model_dump()["cached_tokens"] == 0


# ---- responses ---------------------------------------------------------------------------------------------------

RESPONSES: dict[str, dict[str, Any]] = {
    "text": {"instructions": "Be brief."},
    "tools, required": {"tools": RESPONSE_TOOLS, "tool_choice": "required"},
    "tool, named": {"tools": RESPONSE_TOOLS, "tool_choice": {"type": "function", "name": "get_weather"}},
    "JSON of a schema": {"text": {"format": {"type": "json_schema", "name": "forecast", "schema": SCHEMA}}},
}


@pytest.mark.parametrize("changes", RESPONSES.values(), ids=RESPONSES)
def test_a_response_is_the_same_whole_and_streamed(client: Client, changes: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": "tiny", "input": "Hello", "max_output_tokens": 80, "temperature": 0, **changes}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        *_, last = stream
    assert last.type in ("response.completed", "response.incomplete")
    streamed = last.response

    def items(response: Any) -> list[dict[str, Any]]:
        found = response.model_dump(exclude_none=True)["output"]
        return [{key: item[key] for key in ("type", "name", "arguments", "call_id") if key in item} for item in found]

    assert items(streamed) == items(whole)
    assert streamed.output_text == whole.output_text
    for item in whole.output:
        if item.type == "function_call":
            jsonschema.validate(json.loads(item.arguments), SCHEMAS[item.name])
    assert ("function_call" in {item.type for item in whole.output}) == ("tool_choice" in changes)
    if "text" in changes:
        jsonschema.validate(json.loads(whole.output_text), SCHEMA)


def test_a_response_goes_on_after_its_calls_are_answered(client: Client) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_output_tokens": 60, "tools": RESPONSE_TOOLS}
    first = client.responses.create(**asked, input="Hello", tool_choice="required")
    calls: list[Any] = [item for item in first.output if item.type == "function_call"]
    answers = [{"type": "function_call_output", "call_id": call.call_id, "output": "clear"} for call in calls]
    history: list[Any] = [USER, *(item.model_dump(exclude_none=True) for item in first.output), *answers]
    second = client.responses.create(**asked, input=history, tool_choice="required")
    assert len({item.call_id for item in (*calls, *second.output)}) == len(calls) + len(second.output)
    third = client.responses.create(**asked, input=history, tool_choice="none")
    assert {item.type for item in third.output} <= {"message"}


# ---- messages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}], ids=["any", "named"])
def test_a_message_uses_a_tool_and_reads_its_result(claude: Client, choice: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 80, "tools": ANTHROPIC_TOOLS, **GREEDY}
    first = claude.messages.create(**asked, messages=[USER], tool_choice=choice)
    with claude.messages.stream(**asked, messages=[USER], tool_choice=choice) as stream:
        streamed = stream.get_final_message()
    uses = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == streamed.stop_reason == "tool_use"
    assert [(use.name, use.input) for use in uses] == [
        (block.name, block.input) for block in streamed.content if block.type == "tool_use"
    ]
    schemas = {tool["name"]: tool["input_schema"] for tool in ANTHROPIC_TOOLS}
    for use in uses:
        jsonschema.validate(use.input, schemas[use.name])

    results: list[Any] = [{"type": "tool_result", "tool_use_id": use.id, "content": "clear"} for use in uses]
    history: list[Any] = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    again = claude.messages.create(**asked, messages=history, tool_choice={"type": "any"})
    assert {block.id for block in again.content if block.type == "tool_use"}.isdisjoint(use.id for use in uses)
    done = claude.messages.create(**asked, messages=history, tool_choice={"type": "none"})
    assert done.stop_reason == "max_tokens"
    # What the model wrote is found in the cache, prompt and call.
    assert (done.usage.cache_read_input_tokens or 0) > 0


def test_a_message_ends_before_its_stop_sequence(claude: Client) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 80, "messages": [USER], **GREEDY}
    with claude.messages.stream(**asked) as stream:
        whole = stream.get_final_text()
    stop = next(character for character in whole[20:] if character.isascii() and character.isalpha())
    cut = claude.messages.create(**asked, stop_sequences=[stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert cut.content[0].text == whole.partition(stop)[0]
