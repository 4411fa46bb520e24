"""The HTTP completer against a real server on a socket: what it asks, what it makes of answers, and of failures."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from chogori.chat.completer import (
    ChatRequest,
    Completion,
    ContentDelta,
    Finished,
    Sampling,
    Started,
    TextRequest,
    Usage,
    complete,
)
from chogori.chat.http_completer import HttpCompleter
from chogori.chat.retry_policy import RetryPolicy
from chogori.errors import (
    BackendError,
    BackendTimeoutError,
    ConfigError,
    OverloadedError,
)
from tests.chat.http_asking import HELLO, KEY, ask
from tests.chat.misbehaving_server import (
    Behaviour,
    MisbehavingServer,
    chunk,
    die_after,
    events,
    pieces_of,
    reply,
    running_server,
    said,
    stream,
    usage,
)

HALF = events(chunk({"content": "half"}), done=False)


@pytest.fixture(scope="module")
def running() -> Iterator[MisbehavingServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def server(running: MisbehavingServer) -> MisbehavingServer:
    running.reset(said())
    return running


def answer(server: MisbehavingServer, request: ChatRequest | TextRequest = HELLO) -> Completion:
    async def collect() -> Completion:
        async with HttpCompleter(server.url, "kimi-k2") as completer:
            return await complete(completer, request)

    return asyncio.run(collect())


# ---- what is asked


def test_the_request_carries_key_id_and_body(server: MisbehavingServer) -> None:
    ask(server, ChatRequest(messages=HELLO.messages, request_id="r-1"))
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["x-request-id"] == "r-1"
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_no_key_no_header(server: MisbehavingServer) -> None:
    ask(server, api_key=None)
    assert "authorization" not in server.headers[0]


def test_text_goes_to_completions(server: MisbehavingServer) -> None:
    text = {"choices": [{"index": 0, "text": " world", "finish_reason": "length", "logprobs": None}]}
    server.reset(stream(events(text, usage(1, 1))))
    completion = answer(server, TextRequest(prompt="hello", sampling=Sampling(max_tokens=1)))
    assert server.paths == ["/v1/completions"]
    assert (server.bodies[0]["prompt"], server.bodies[0]["max_tokens"]) == ("hello", 1)
    assert completion.choices[0].message.content == " world"
    assert completion.choices[0].finish_reason == "length"


# ---- what comes back


def test_an_answer_becomes_events(server: MisbehavingServer) -> None:
    server.reset(
        stream(events(chunk({"content": "hel"}), chunk({"content": "lo"}), chunk(finish="stop"), usage(9, 2, cached=4)))
    )
    assert ask(server) == (
        [
            Started(prompt_tokens=2),
            ContentDelta(text="hel"),
            ContentDelta(text="lo"),
            Finished(reason="stop"),
            Usage(prompt_tokens=9, completion_tokens=2, cached_tokens=4),
        ],
        None,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r", "\n: ping\n\n", "\nevent: message\nid: 7\n\n"])
def test_pieces_and_line_ends_change_nothing(server: MisbehavingServer, size: int, end: str) -> None:
    body = events(chunk({"content": "héllo 🏔️"}), chunk(finish="stop"), usage(1, 2), end=end)
    server.reset(stream(*pieces_of(body, size)))
    completion = answer(server)
    assert completion.choices[0].message.content == "héllo 🏔️"
    assert completion.usage == Usage(prompt_tokens=1, completion_tokens=2)


def test_the_end_is_known_without_done(server: MisbehavingServer) -> None:
    server.reset(stream(events(chunk({"content": "a"}), chunk(finish="stop"), done=False)))
    assert answer(server).choices[0].message.content == "a"


def test_a_server_that_does_not_stream_is_read(server: MisbehavingServer) -> None:
    message = {"role": "assistant", "content": "whole"}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage(3, 1)["usage"]}
    server.reset(reply(whole))
    completion = answer(server)
    assert completion.choices[0].message.content == "whole"
    assert completion.usage == Usage(prompt_tokens=3, completion_tokens=1)


def test_a_connection_is_used_again(server: MisbehavingServer) -> None:
    ports: list[int] = []
    good = said()

    async def behave(request: Request) -> Response:
        assert request.client is not None
        ports.append(request.client.port)
        return await good(request)

    server.reset(behave)

    async def ask_twice() -> None:
        async with HttpCompleter(server.url, "m") as completer:
            for _ in range(2):
                await complete(completer, HELLO)

    asyncio.run(ask_twice())
    assert len(ports) == 2
    assert len(set(ports)) == 1


# ---- asking again

BUSY = {"error": {"message": "slow down", "type": "rate_limit_reached_error"}}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_asked_again(server: MisbehavingServer, status: int) -> None:
    slept: list[float] = []
    server.reset(reply(BUSY, status), reply("<html>bad gateway</html>", status), said())
    told, error = ask(server, slept=slept)
    assert error is None
    assert ContentDelta(text="hello") in told
    assert slept == [0.25, 0.5]  # the middle of 0 … 0.5, then of 0 … 1
    assert server.bodies[0] == server.bodies[1] == server.bodies[2]


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.25),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.75),
        ({"retry-after": "Mon, 12 Jan 1970 13:46:43 GMT"}, 3.25),
        ({"retry-after": "Mon, 12 Jan 1970 13:46:00 GMT"}, 0.25),
        ({"retry-after": "soon"}, 0.25),
    ],
)
def test_the_server_says_when_to_come_again(server: MisbehavingServer, headers: dict[str, str], wait_s: float) -> None:
    slept: list[float] = []
    server.reset(reply(BUSY, 429, headers), said())
    assert ask(server, slept=slept)[1] is None
    assert slept == [wait_s]


def test_retries_end(server: MisbehavingServer) -> None:
    slept: list[float] = []
    server.reset(reply(BUSY, 429, {"retry-after": "2"}))
    told, error = ask(server, slept=slept, retries=RetryPolicy(max_retries=2))
    assert (told, len(slept), len(server.bodies)) == ([], 2, 3)
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 2
    assert str(error) == f"kimi-k2 at {server.url} answered 429: slow down"


def test_a_server_that_wants_too_long_a_wait_is_not_asked_again(server: MisbehavingServer) -> None:
    server.reset(reply(BUSY, 429, {"retry-after": "3600"}))
    _, error = ask(server)
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 3600
    assert len(server.bodies) == 1


def test_a_connection_lost_before_the_answer_is_made_again(server: MisbehavingServer) -> None:
    server.reset(die_after(), said())
    told, error = ask(server)
    assert error is None
    assert ContentDelta(text="hello") in told


def test_a_refused_connection_is_tried_again_and_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slept: list[float] = []
    told, error = ask(f"http://127.0.0.1:{port}/v1", slept=slept)
    assert told == []
    assert len(slept) == 4
    assert isinstance(error, BackendError)
    assert "ConnectError" in str(error)


@pytest.mark.parametrize(
    "behaviour",
    [
        die_after(HALF),
        stream(HALF),
        stream(HALF, b"data: [DONE]\n\n"),
        stream(HALF, b"data: {\n\n"),
        stream(HALF, b'data: {"error": {"message": "oom", "code": 500}}\n\n'),
    ],
    ids=["dies", "ends", "says done", "garbage", "error"],
)
def test_nothing_is_asked_again_once_an_answer_has_begun(server: MisbehavingServer, behaviour: Behaviour) -> None:
    server.reset(behaviour, said())
    told, error = ask(server)
    assert told == [Started(prompt_tokens=2), ContentDelta(text="half")]
    assert isinstance(error, BackendError)
    assert len(server.bodies) == 1


def test_an_error_in_place_of_an_answer_is_asked_again(server: MisbehavingServer) -> None:
    server.reset(stream(events({"error": {"message": "busy", "code": 503}}, done=False)), said())
    assert ask(server)[1] is None


# ---- time


def test_a_first_token_that_does_not_come(server: MisbehavingServer) -> None:
    server.reset(server.hang(b": ping\n\n"), said())
    told, error = ask(server, first_token_timeout_s=0.2)
    assert told == []
    assert isinstance(error, BackendTimeoutError)
    assert str(error) == f"kimi-k2 at {server.url} did not send a first token in time"
    assert len(server.bodies) == 1
    assert server.disconnected.wait(10)


def test_a_further_token_that_does_not_come(server: MisbehavingServer) -> None:
    server.reset(server.hang(HALF))
    told, error = ask(server, between_tokens_timeout_s=0.2)
    assert told[1:] == [ContentDelta(text="half")]
    assert isinstance(error, BackendTimeoutError)
    assert "did not send a further token in time" in str(error)
    assert server.disconnected.wait(10)


def test_a_connection_that_is_not_made_in_time() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"]["connect"] == 3
        raise httpx.ConnectTimeout("", request=request)

    async def collect() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
            policy = RetryPolicy(max_retries=0)
            completer = HttpCompleter("http://10.0.0.1/v1", "m", client=client, connect_timeout_s=3, retries=policy)
            await complete(completer, HELLO)

    with pytest.raises(BackendTimeoutError, match="ConnectTimeout"):
        asyncio.run(collect())


def test_closing_the_stream_closes_the_connection(server: MisbehavingServer) -> None:
    server.reset(server.hang(HALF))

    async def leave_early() -> None:
        async with HttpCompleter(server.url, "m") as completer:
            stream = completer.stream(HELLO)
            assert isinstance(await anext(stream), Started)
            await stream.aclose()
            # Still within the completer: it is the stream that closed the connection.
            assert await asyncio.to_thread(server.disconnected.wait, 10)

    asyncio.run(leave_early())


def test_cancelling_the_reader_closes_the_connection(server: MisbehavingServer) -> None:
    server.reset(server.hang(HALF))

    async def cancel() -> None:
        async with HttpCompleter(server.url, "m") as completer:
            has_begun = asyncio.Event()

            async def read() -> None:
                async for _ in completer.stream(HELLO):
                    has_begun.set()

            task = asyncio.create_task(read())
            await has_begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.disconnected.wait, 10)

    asyncio.run(cancel())


# ---- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8000"}, "expected an address such as https://"),
        ({"base_url": "ftp://x/v1"}, "expected an address such as https://"),
        ({"base_url": f"https://me:{KEY}@x/v1"}, "pass the key as api_key"),
        ({"api_key": "sk\n1"}, "characters that no HTTP header can hold"),
        ({"api_key": " sk"}, "white space around it"),
        ({"first_token_timeout_s": 0}, "first_token_timeout_s is 0; expected more than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    settings = {"base_url": "https://x/v1", "model": "m"} | changes
    with pytest.raises(ConfigError, match=message) as caught:
        HttpCompleter(**settings)  # pyright: ignore[reportArgumentType]
    assert KEY not in str(caught.value)


def test_a_slash_at_the_end_of_the_address_is_nothing(server: MisbehavingServer) -> None:
    told, error = ask(server.url + "/")
    assert error is None
    assert told
