"""Where the tokens of an echoed completion begin."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

from chogori.chat.completer import Choice, Completion, ContentDelta, Event, Finished, TokenLogprob, Usage
from chogori.chat.messages import Message
from chogori.serve.openai.text_answer import TextAnswer

HALVES = (TokenLogprob(token_id=1, text=b"\xc3", logprob=-1.0), TokenLogprob(token_id=2, text=b"\xa9", logprob=-1.0))
WORD = (TokenLogprob(token_id=3, text=b" word", logprob=float("-inf")),)
USAGE = Usage(prompt_tokens=1, completion_tokens=3)


def answer() -> TextAnswer:
    return TextAnswer(model="m", fingerprint="f", num_choices=1, logprobs=True)


def test_tokens_begin_after_the_echoed_prompt() -> None:
    message = Message(role="assistant", content="prompt word")
    choice = Choice(message=message, finish_reason="length", logprobs=WORD)
    logprobs = answer().whole([Completion(choices=(choice,), usage=USAGE)])["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [len("prompt")]
    assert logprobs["token_logprobs"] == [-9999.0], "JSON has no infinity"


def test_the_first_token_of_an_echoed_prompt_has_no_probability() -> None:
    """The prompt is accounted for by its tokens, so the places count from its beginning."""
    first = TokenLogprob(token_id=4, text="山".encode(), logprob=None)
    message = Message(role="assistant", content="山é word")
    choice = Choice(message=message, finish_reason="length", logprobs=(first, *HALVES, *WORD))
    logprobs = answer().whole([Completion(choices=(choice,), usage=USAGE)])["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["山", "\ufffd", "\ufffd", " word"],
        "token_logprobs": [None, -1.0, -1.0, -9999.0],
        "top_logprobs": [None, {}, {}, {}],
        "text_offset": [0, 1, 1, 2],
    }


def test_a_stream_says_the_same() -> None:
    async def events() -> AsyncGenerator[tuple[int, Event]]:
        yield 0, ContentDelta(text="prompt")
        yield 0, ContentDelta(text=" word", logprobs=WORD)
        yield 0, ContentDelta(text="é", logprobs=HALVES)
        yield 0, Finished(reason="stop")
        yield 0, USAGE

    async def frames() -> list[bytes]:
        return [frame async for frame in answer().frames(events())]

    *chunks, _ = [frame.removeprefix(b"data: ") for frame in asyncio.run(frames())]
    found = [json.loads(chunk)["choices"][0]["logprobs"] for chunk in chunks]
    assert [logprobs["text_offset"] for logprobs in found[:3]] == [[], [6], [11, 11]], "é is one character"
    assert found[2]["tokens"] == ["\ufffd", "\ufffd"]
