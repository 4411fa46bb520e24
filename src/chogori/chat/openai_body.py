"""A request as the body of OpenAI's chat completions or completions, always streaming."""

from __future__ import annotations

from typing import Literal

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool, Sampling, TextRequest, ToolChoice

Body = dict[str, object]
LimitField = Literal["max_tokens", "max_completion_tokens"]


def body_of(
    request: ChatRequest | TextRequest, *, model: str, limit_field: LimitField, sends_cache_key: bool = False
) -> Body:
    """The JSON body. Settings that OpenAI does not have are there only where they change something.

    Temperature and top-p always are: a server's own defaults are not ours. `model` answers a request that names none,
    `limit_field` is what the server calls the token limit of a conversation's answer. `sends_cache_key`: whether it
    takes a `prompt_cache_key`.
    """
    body: Body = {"model": request.model or model, "stream": True, "stream_options": {"include_usage": True}}
    if isinstance(request, TextRequest):
        body["prompt"] = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        if request.echo:
            body["echo"] = True
        if request.sampling.logprobs:
            body["logprobs"] = request.sampling.top_logprobs
        return body | _sampling(request.sampling, "max_tokens")
    body["messages"] = [message.to_openai() for message in request.messages]
    if request.tools:
        body["tools"] = [tool.declaration for tool in request.tools]
        body["tool_choice"] = _tool_choice(request.tool_choice)
        if not request.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if request.response_format is not None:
        body["response_format"] = _response_format(request.response_format)
    if sends_cache_key and request.cache_key is not None:
        body["prompt_cache_key"] = request.cache_key
    if request.sampling.logprobs:
        body["logprobs"] = True
        if request.sampling.top_logprobs:
            body["top_logprobs"] = request.sampling.top_logprobs
    return body | _sampling(request.sampling, limit_field)


def _sampling(sampling: Sampling, limit_field: LimitField) -> Body:
    body: Body = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    changes: dict[str, tuple[object, object]] = {
        limit_field: (sampling.max_tokens, None),
        "top_k": (sampling.top_k, None),
        "min_p": (sampling.min_p, 0.0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "logit_bias": ({str(token_id): bias for token_id, bias in sampling.logit_bias.items()}, {}),
        "stop": (list(sampling.stop), []),
        "seed": (sampling.seed, None),
        "n": (sampling.num_choices, 1),
        "ignore_eos": (sampling.ignore_eos, False),
    }
    return body | {name: value for name, (value, without) in changes.items() if value != without}


def _tool_choice(choice: ToolChoice) -> object:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedTool) else choice


def _response_format(wanted: JsonFormat) -> Body:
    if wanted.schema is None:
        return {"type": "json_object"}
    # Without `strict`, OpenAI takes a schema for advice.
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted.schema, "strict": True}}
