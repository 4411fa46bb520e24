"""Requests as OpenAI's own SDK types would have them, and nothing in them that nobody asked for."""

from typing import Any, cast

from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.completion_create_params import CompletionCreateParamsStreaming as TextParamsStreaming
from pydantic import TypeAdapter

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool, Sampling, TextRequest
from chogori.chat.messages import Message, ToolCall, ToolSpec
from chogori.chat.openai_body import Body, body_of

USER = Message(role="user", content="hi")
TOOL = ToolSpec(name="f", description="does f")
BARE: Body = {
    "model": "m",
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 1.0,
    "top_p": 1.0,
}


def chat_body(request: ChatRequest) -> Body:
    return body_of(request, model="m", limit_field="max_tokens")


def test_a_bare_request_asks_for_nothing_else() -> None:
    body = chat_body(ChatRequest(messages=[USER]))
    assert body == BARE | {"messages": [{"role": "user", "content": "hi"}]}


def test_every_setting_arrives() -> None:
    sampling = Sampling(
        max_tokens=5, temperature=0.0, top_p=0.5, top_k=7, min_p=0.1, presence_penalty=1.0, frequency_penalty=-1.0,
        repetition_penalty=1.5, logit_bias={3: -100.0}, stop=("a", "b"), seed=0, num_choices=2, logprobs=True,
        top_logprobs=4, ignore_eos=True,
    )  # fmt: skip
    body = chat_body(ChatRequest(messages=[USER], sampling=sampling))
    expected = {
        "max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "presence_penalty": 1.0,
        "frequency_penalty": -1.0, "repetition_penalty": 1.5, "logit_bias": {"3": -100.0}, "stop": ["a", "b"],
        "seed": 0, "n": 2, "logprobs": True, "top_logprobs": 4, "ignore_eos": True,
    }  # fmt: skip
    assert {name: body[name] for name in expected} == expected


def test_the_limit_has_the_name_that_the_server_knows() -> None:
    request = ChatRequest(messages=[USER], sampling=Sampling(max_tokens=5))
    body = body_of(request, model="m", limit_field="max_completion_tokens")
    assert body["max_completion_tokens"] == 5
    assert "max_tokens" not in body


def test_a_cache_key_is_sent_to_those_who_know_it() -> None:
    request = ChatRequest(messages=[USER], cache_key="cache-1")
    assert "prompt_cache_key" not in chat_body(request)
    body = body_of(request, model="m", limit_field="max_tokens", sends_cache_key=True)
    assert body["prompt_cache_key"] == "cache-1"


def test_the_model_of_the_request_comes_first() -> None:
    assert chat_body(ChatRequest(messages=[USER], model="other"))["model"] == "other"


def test_tools_and_choices() -> None:
    request = ChatRequest(messages=[USER], tools=[TOOL], tool_choice=NamedTool(name="f"), parallel_tool_calls=False)
    body = chat_body(request)
    assert body["tools"] == [TOOL.declaration]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["parallel_tool_calls"] is False
    assert chat_body(ChatRequest(messages=[USER], tools=[TOOL]))["tool_choice"] == "auto"
    # OpenAI refuses both without tools.
    without = chat_body(ChatRequest(messages=[USER], parallel_tool_calls=False))
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(without)


def test_json_formats() -> None:
    schema = {"type": "object"}
    assert chat_body(ChatRequest(messages=[USER], response_format=JsonFormat()))["response_format"] == {
        "type": "json_object"
    }
    assert chat_body(ChatRequest(messages=[USER], response_format=JsonFormat(schema=schema)))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }


def test_openais_own_types_take_the_bodies() -> None:
    call = ToolCall(id="functions.f:0", name="f", arguments="{}")
    messages = [
        Message(role="system", content="s"),
        USER,
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="1", tool_call_id="functions.f:0"),
    ]
    sampling = Sampling(max_tokens=5, stop=("a",), seed=1, num_choices=2, logprobs=True, top_logprobs=2)
    request = ChatRequest(
        messages=messages,
        tools=[TOOL],
        tool_choice="required",
        response_format=JsonFormat(schema={}),
        sampling=sampling,
    )
    read = TypeAdapter(CompletionCreateParamsStreaming).validate_python(chat_body(request))
    assert len(list(cast(Any, read["messages"]))) == 4
    text = TextRequest(prompt=(1, 2), echo=True, sampling=sampling)
    TypeAdapter(TextParamsStreaming).validate_python(body_of(text, model="m", limit_field="max_completion_tokens"))


def test_text_requests() -> None:
    body = body_of(
        TextRequest(prompt="a", sampling=Sampling(max_tokens=0)), model="m", limit_field="max_completion_tokens"
    )
    assert body == BARE | {"prompt": "a", "max_tokens": 0}
    request = TextRequest(prompt=(1, 2), echo=True, sampling=Sampling(logprobs=True, top_logprobs=2))
    body = body_of(request, model="m", limit_field="max_tokens")
    assert (body["prompt"], body["echo"], body["logprobs"]) == ([1, 2], True, 2)
