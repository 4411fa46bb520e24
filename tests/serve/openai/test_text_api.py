"""Completions as the official SDK sees them, over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from chogori.chat.completer import TextRequest
from chogori.errors import BackendError, RequestError
from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import Asked, Reply, ScriptedBackend, ScriptedCompleter


def client_of(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20)


def post(server: LiveServer, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json={"model": "kimi-test", "prompt": "a", **body}, timeout=20)


def echoing_backend() -> ScriptedBackend:
    """Answers every prompt with the prompt, so that answers can be told apart."""

    def reply(request: Asked) -> Reply:
        assert isinstance(request, TextRequest)
        return Reply(pieces=["<", str(request.prompt), ">"])

    return ScriptedBackend(ScriptedCompleter(reply))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_answered_in_order_with_all_their_choices(
    serve: Serve, prompt: Any, prompts: list[object], stream: bool
) -> None:
    backend = echoing_backend()
    client = client_of(serve(backend))
    texts = dict.fromkeys(range(2 * len(prompts)), "")
    if stream:
        for chunk in client.completions.create(model="kimi-test", prompt=prompt, n=2, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        answer = client.completions.create(model="kimi-test", prompt=prompt, n=2)
        texts = {choice.index: choice.text for choice in answer.choices}
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 6 * len(prompts)
    assert list(texts.values()) == [f"<{prompt}>" for prompt in prompts for _ in range(2)]
    assert sorted(str(r.prompt) for r in backend.completer.asked if isinstance(r, TextRequest)) == sorted(
        map(str, prompts)
    )


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_know_where_each_token_begins(serve: Serve, stream: bool) -> None:
    server = serve(ScriptedBackend.saying("ab", "cde", "f"))
    client = client_of(server)
    if stream:
        chunks = client.completions.create(model="kimi-test", prompt="x", logprobs=1, stream=True)
        found = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    else:
        found = [client.completions.create(model="kimi-test", prompt="x", logprobs=1).choices[0].logprobs]
    assert [token for logprobs in found for token in logprobs.tokens] == ["ab", "cde", "f"]  # pyright: ignore
    assert [offset for logprobs in found for offset in logprobs.text_offset] == [0, 2, 5]  # pyright: ignore
    assert [top for logprobs in found for top in logprobs.top_logprobs] == [{"alt0": -1.0}] * 3  # pyright: ignore


def test_parameters_reach_the_completer(serve: Serve) -> None:
    backend = ScriptedBackend.saying("Hi")
    server = serve(backend)
    assert post(server, echo=True, logprobs=0, best_of=2, n=2, seed=1, suffix=None).status_code == 200
    assert post(server).status_code == 200
    assert post(server, max_tokens=0).status_code == 200
    first, second, third = backend.completer.asked
    assert isinstance(first, TextRequest)
    assert (first.echo, first.sampling.logprobs, first.sampling.top_logprobs) == (True, True, 0)
    assert third.sampling.max_tokens == 0
    assert (second.sampling.max_tokens, second.sampling.temperature, second.sampling.logprobs) == (16, 1.0, False)


def test_usage_of_a_stream_is_summed_over_prompts(serve: Serve) -> None:
    client = client_of(serve(ScriptedBackend.saying("a", "b")))
    *chunks, last = client.completions.create(
        model="kimi-test", prompt=["x", "y"], stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (14, 4)
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"suffix": "end"}, "suffix", "cannot fill in"),
        ({"best_of": 3}, "best_of", "expected the same"),
        ({"max_tokens": -1}, "max_tokens", "Expected a value >= 0, but got -1"),
        ({"prompt": []}, "prompt", "empty array"),
        ({"prompt": [-1]}, "prompt[0]", "Expected a value >= 0, but got -1"),
        ({"prompt": {"a": 1}}, "prompt", "expected one of a string or an array, but got an object"),
        ({"prompt": ["a"] * 129}, "prompt", "maximum length 128"),
        ({"messages": []}, "messages", "Unrecognized request argument supplied: messages"),
    ],
)
def test_what_cannot_be_is_refused_by_name(serve: Serve, body: dict[str, object], param: str, words: str) -> None:
    response = post(serve(ScriptedBackend.saying("Hi")), **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"]


def test_one_failing_prompt_fails_the_request_and_cancels_the_others(serve: Serve) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    def reply(request: Asked) -> Reply:
        bad = isinstance(request, TextRequest) and request.prompt == "bad"
        return Reply(error=RequestError("this prompt is bad", field="prompt")) if bad else Reply(pieces=["never"])

    backend = ScriptedBackend(ScriptedCompleter(reply, pause=forever))
    response = post(serve(backend), prompt=["good", "bad"])
    assert (response.status_code, response.json()["error"]["message"]) == (400, "this prompt is bad")
    assert (backend.completer.num_running, backend.completer.num_cancelled) == (0, 1)


def test_a_failure_at_a_later_prompt_is_the_last_event(serve: Serve) -> None:
    def reply(request: Asked) -> Reply:
        bad = isinstance(request, TextRequest) and request.prompt == "bad"
        return Reply(error=BackendError("it stopped")) if bad else Reply(pieces=["fine"])

    server = serve(ScriptedBackend(ScriptedCompleter(reply)))
    events = post(server, prompt=["good", "bad"], stream=True).text.strip().split("\n\n")
    assert "fine" in events[0]
    assert '"message":"it stopped"' in events[-1]
