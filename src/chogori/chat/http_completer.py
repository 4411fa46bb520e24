"""A Completer over any OpenAI-compatible address: Moonshot's own API, vLLM, SGLang, llama.cpp, our own server."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Self, cast

import httpx

from chogori.chat.completer import ChatRequest, Event, TextRequest
from chogori.chat.http_failure import HttpFailure, failure_of, refusal_of
from chogori.chat.openai_answer import OpenAIAnswer
from chogori.chat.openai_body import LimitField, body_of
from chogori.chat.retry_policy import RetryPolicy, retry_after_s
from chogori.chat.server_sent_events import EventReader
from chogori.chat.token_estimate import tokens_of_four_bytes
from chogori.errors import BackendError, BackendTimeoutError, ConfigError

logger = logging.getLogger(__name__)

MAX_WAIT_FOR_END_S = 0.25
"""For a connection to be used again, after the last event; without its end it is closed."""
MAX_REFUSAL_BYTES = 64 * 1024
"""Of an error's body that is read."""


class HttpCompleter:
    """Streams answers of `model` from `base_url`, such as "https://api.moonshot.ai/v1".

    A request that got nothing is sent again, as `retries` says, after 408, 429, any 5xx and a lost or refused
    connection. Once anything of an answer has arrived, a failure is the caller's to handle. Closing the iterator closes
    the connection, by which servers notice that nobody listens. The key is in no message, log or repr.

    Prompt tokens are known to servers only at the end, so `Started` says what `count_tokens` counts; `Usage` is the
    server's own count, where it has one. Markers of K2's format that a server leaves in its content stay there.

    Use it within one event loop, and close it, or use it as an async context manager.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        connect_timeout_s: float = 10.0,
        first_token_timeout_s: float = 600.0,
        between_tokens_timeout_s: float = 120.0,
        limit_field: LimitField = "max_tokens",
        sends_cache_key: bool = False,
        count_tokens: Callable[[str], int] = tokens_of_four_bytes,
        client: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random_source: random.Random | None = None,
    ) -> None:
        """`limit_field`: what the server calls the token limit; OpenAI's reasoning models know the longer name only.
        `sends_cache_key`: whether it takes a `prompt_cache_key`, as OpenAI's and Moonshot's do.

        `client` is used and left open; without it, one is made. `clock` gives Unix time.
        """
        url = _checked_url(base_url)
        for name, timeout_s in (
            ("connect_timeout_s", connect_timeout_s),
            ("first_token_timeout_s", first_token_timeout_s),
            ("between_tokens_timeout_s", between_tokens_timeout_s),
        ):
            if timeout_s <= 0:
                raise ConfigError(f"{name} is {timeout_s}; expected more than 0")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
            raise ConfigError("api_key has white space around it or characters that no HTTP header can hold")
        self.base_url = url
        self.model = model
        self._key = api_key or ""
        self._retries = retries
        self._first_token_timeout_s = first_token_timeout_s
        self._between_tokens_timeout_s = between_tokens_timeout_s
        self._limit_field: LimitField = limit_field
        self._sends_cache_key = sends_cache_key
        self._count_tokens = count_tokens
        self._owns_client = client is None
        # As many connections as there are requests: how many run at once is for the caller to say.
        self._client = client or httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256)
        )
        self._timeout = httpx.Timeout(None, connect=connect_timeout_s)
        self._clock = clock
        self._sleep = sleep
        self._random = random_source or random.Random()

    def __repr__(self) -> str:
        return f"HttpCompleter({self.base_url!r}, {self.model!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_client:
            await self._client.aclose()

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """Answer a request.

        Raises RequestError or ContextLengthError for what the server refuses (400, 413, 422, an unknown model),
        OverloadedError for 429, BackendTimeoutError where nothing came in time, and BackendError with the status for
        everything else: a wrong key or address, a server that fails, dies in mid-answer or sends what is no answer.
        """
        num_failures = 0
        while True:
            has_begun = False
            try:
                async with aclosing(self._try(request)) as events:
                    async for event in events:
                        has_begun = True
                        yield event
                return
            except HttpFailure as failure:
                num_failures += 1
                wait_s = None
                if failure.may_pass and not has_begun:
                    wait_s = self._retries.wait_s(num_failures, failure.retry_after_s, self._random)
                if wait_s is None:
                    raise failure.error from failure.__cause__
                logger.warning(
                    "retry %d of %d in %.2f s: %s", num_failures, self._retries.max_retries, wait_s, failure.error
                )
            await self._sleep(wait_s)

    async def _try(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """Ask once. Raises HttpFailure."""
        answer = OpenAIAnswer(request, count_tokens=self._count_tokens)
        deadline = asyncio.get_running_loop().time() + self._first_token_timeout_s
        try:
            async with self._reply(request, deadline) as reply, aclosing(self._chunks(reply, deadline)) as chunks:
                async for chunk in chunks:
                    for event in answer.feed(chunk):
                        yield event
            for event in answer.finish():
                yield event
        except httpx.TransportError as error:
            raise self._lost(error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HttpFailure(BackendError(f"{self._where}: {error}"), may_pass=False) from error
        except BackendError as error:
            raise HttpFailure(BackendError(f"{self._where}: {error}"), may_pass=False) from error

    @asynccontextmanager
    async def _reply(self, request: ChatRequest | TextRequest, deadline: float) -> AsyncGenerator[httpx.Response]:
        """The server's reply, its body still to come. Raises HttpFailure for any status but 200."""
        path = "/chat/completions" if isinstance(request, ChatRequest) else "/completions"
        headers = {"accept": "text/event-stream"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        if request.request_id is not None:
            headers["x-request-id"] = request.request_id
        asked = self._client.build_request(
            "POST",
            self.base_url + path,
            json=body_of(
                request, model=self.model, limit_field=self._limit_field, sends_cache_key=self._sends_cache_key
            ),
            headers=headers,
            timeout=self._timeout,
        )
        async with self._until(deadline, "an answer"):
            reply = await self._client.send(asked, stream=True, follow_redirects=False)
        try:
            if reply.status_code != 200:
                async with self._until(deadline, "its whole refusal"):
                    raise await self._refused(reply)
            yield reply
        finally:
            await reply.aclose()

    async def _chunks(self, reply: httpx.Response, deadline: float) -> AsyncGenerator[object]:
        """The JSON of the reply's events up to `[DONE]`, or of the whole reply from a server that does not stream.

        Comments, by which servers keep a connection open, are no tokens: the time runs on.
        """
        if "json" in reply.headers.get("content-type", ""):
            async with self._until(deadline, "its answer"):
                text = (await reply.aread()).decode("utf-8", "replace")
            yield self._parsed(text)
            return
        reader, awaited = EventReader(), "a first token"
        async with aclosing(cast(AsyncGenerator[bytes], reply.aiter_bytes())) as received:
            while True:
                async with self._until(deadline, awaited):
                    data = await anext(received, None)
                if data is None:
                    return
                for event in reader.feed(data):
                    if event.data.strip() == "[DONE]":
                        await _read_to_end(received)
                        return
                    yield self._parsed(event.data)
                    awaited = "a further token"
                    deadline = asyncio.get_running_loop().time() + self._between_tokens_timeout_s

    def _parsed(self, data: str) -> object:
        try:
            chunk = cast(object, json.loads(data))
        except (ValueError, RecursionError) as error:
            raise BackendError(f"the server sent what is not JSON: {self._redacted(data)[:200]!r}") from error
        if isinstance(chunk, Mapping) and cast(Mapping[str, object], chunk).get("error"):
            refusal = refusal_of(self._redacted(data))
            raise failure_of(refusal, status=refusal.status, where=self._where, retry_after_s=None)
        return cast(object, chunk)

    async def _refused(self, reply: httpx.Response) -> HttpFailure:
        body = b""
        async for data in reply.aiter_bytes():
            body += data
            if len(body) > MAX_REFUSAL_BYTES:
                break
        refusal = refusal_of(self._redacted(body[:MAX_REFUSAL_BYTES].decode("utf-8", "replace")))
        if reply.is_redirect:
            refusal = replace(refusal, message=f"redirected to {reply.headers['location']}; use that for base_url")
        wait_s = retry_after_s(reply.headers, self._clock)
        return failure_of(refusal, status=reply.status_code, where=self._where, retry_after_s=wait_s)

    def _lost(self, error: httpx.TransportError) -> HttpFailure:
        text = f"{self._where}: {type(error).__name__}: {error or 'the connection was lost'}"
        if isinstance(error, httpx.TimeoutException):
            return HttpFailure(BackendTimeoutError(text), may_pass=True)
        is_ours = isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
        return HttpFailure(BackendError(text), may_pass=not is_ours)

    @asynccontextmanager
    async def _until(self, deadline: float, awaited: str) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError as error:
            text = f"{self._where} did not send {awaited} in time"
            raise HttpFailure(BackendTimeoutError(text), may_pass=False) from error

    @property
    def _where(self) -> str:
        return f"{self.model} at {self.base_url}"

    def _redacted(self, text: str) -> str:
        """Text of the server's without our key, which some send back."""
        return text.replace(self._key, "[api key]") if self._key else text


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"base_url is {base_url!r}: {error}") from error
    if url.userinfo:
        raise ConfigError("base_url holds a name or password; pass the key as api_key, which is never shown")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ConfigError(f"base_url is {base_url!r}; expected an address such as https://api.moonshot.ai/v1")
    return str(url).rstrip("/")


async def _read_to_end(received: AsyncIterator[bytes]) -> None:
    """Read what follows the last event, commonly nothing, so that the connection can be used again."""
    with suppress(TimeoutError, httpx.TransportError):
        async with asyncio.timeout(MAX_WAIT_FOR_END_S):
            async for _ in received:
                pass
