"""Prefixes that the engine keeps on purpose: found whole, never evicted, free at once when they are let go."""

import asyncio
from collections.abc import Callable

import pytest

from chogori.chat.completer import ChatRequest, Sampling, complete
from chogori.chat.messages import Message, ToolSpec
from chogori.chat.template import render
from chogori.engine.completer import EngineCompleter
from chogori.engine.engine import Engine
from chogori.engine.vocabulary import Vocabulary
from chogori.errors import BackendError, PinLimitError, RequestError
from tests.serve.local_engine import eventually

Make = Callable[..., EngineCompleter]
CITY = ToolSpec(name="get_city", parameters={"type": "object", "properties": {"n": {"type": "integer"}}})
DOCUMENT = [Message(role="system", content="The harbour opens at six. " * 12), Message(role="user", content="Noted?")]
PREFIX = ChatRequest(messages=DOCUMENT, tools=[CITY])


@pytest.fixture
def make_completer(make_engine: Callable[..., Engine], vocabulary: Vocabulary) -> Make:
    return lambda **changes: EngineCompleter(make_engine(**changes), vocabulary)


def asking(text: str, *, seed: int | None = 1) -> ChatRequest:
    """A conversation that goes on from PREFIX."""
    messages = [*DOCUMENT, Message(role="assistant", content="Yes."), Message(role="user", content=text)]
    return ChatRequest(messages=messages, tools=[CITY], sampling=Sampling(max_tokens=6, seed=seed, ignore_eos=True))


@pytest.mark.parametrize("seed", [None, 1])
def test_a_conversation_finds_the_whole_blocks_of_a_pinned_beginning(
    make_completer: Make, vocabulary: Vocabulary, seed: int | None
) -> None:
    completer = make_completer()
    expected = render(DOCUMENT, [CITY], tokenizer=vocabulary.tokenizer).ids

    async def scenario() -> None:
        alone = await complete(completer, asking("Hi", seed=1))
        completer.engine.stop()
        fresh = make_completer()
        pinned = await fresh.pin(PREFIX)
        size = fresh.engine.config.block_tokens
        assert pinned.num_tokens == len(expected)
        assert fresh.engine.state().cache_tokens_pinned == len(expected) // size * size
        hit = await complete(fresh, asking("Hi", seed=seed))
        assert hit.usage.cached_tokens == len(expected) // size * size
        if seed is not None:
            assert hit.choices == alone.choices, "to the token, as without any cache"

    asyncio.run(scenario())


def test_nothing_evicts_a_pinned_beginning_and_releasing_it_frees_it_at_once(make_completer: Make) -> None:
    completer = make_completer(cache_tokens=1024)
    engine = completer.engine

    async def scenario() -> None:
        pinned = await completer.pin(PREFIX)
        held = engine.state().cache_tokens_used
        for i in range(12):
            filler = [Message(role="user", content=f"{i} and much else " * 12)]
            await complete(completer, ChatRequest(messages=filler, sampling=Sampling(max_tokens=2, seed=0)))
        hit = await complete(completer, asking("Hi"))
        assert hit.usage.cached_tokens == held
        assert engine.state().cache_tokens_used == held
        pinned.release()
        pinned.release()
        await asyncio.to_thread(eventually, lambda: engine.state().cache_tokens_used == 0)
        assert engine.state().cache_tokens_pinned == 0

    asyncio.run(scenario())


def test_pinned_beginnings_do_not_count_among_the_answers_that_may_be_open(make_completer: Make) -> None:
    completer = make_completer(max_running=1, max_waiting=1)

    async def scenario() -> None:
        pins = [await completer.pin(PREFIX) for _ in range(5)]
        await complete(completer, asking("Hi"))
        for pin in pins:
            pin.release()
        both = await asyncio.gather(*(complete(completer, asking(text)) for text in ("Hi", "Ho")))
        assert len(both) == 2

    asyncio.run(scenario())


def test_a_beginning_beyond_the_share_is_refused_and_takes_nothing(make_completer: Make) -> None:
    completer = make_completer(pinned_share=0.01)
    with pytest.raises(PinLimitError, match=r"more tokens are to be pinned, beside 0; expected at most 32 in all"):
        asyncio.run(completer.pin(PREFIX))
    assert completer.engine.state().cache_tokens_used == 0
    with pytest.raises(RequestError, match=r"reuses no prefixes"):
        asyncio.run(make_completer(reuse_prefixes=False).pin(PREFIX))


def test_a_beginning_that_nobody_waits_for_any_more_is_not_pinned(make_completer: Make) -> None:
    completer = make_completer(prefill_chunk_tokens=16, step_tokens=16)

    async def scenario() -> None:
        pinning = asyncio.create_task(completer.pin(PREFIX))
        await asyncio.to_thread(eventually, lambda: completer.engine.state().running == 1)
        pinning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pinning
        await asyncio.to_thread(eventually, lambda: completer.engine.state().cache_tokens_used == 0)

    asyncio.run(scenario())


def test_a_stopped_engine_says_so(make_completer: Make) -> None:
    completer = make_completer()
    completer.engine.stop()
    with pytest.raises(BackendError, match="shutting down"):
        asyncio.run(completer.pin(PREFIX))
