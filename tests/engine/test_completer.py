"""The engine as a Completer: whole events, exact counts, and nothing left behind."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from typing import cast

import jsonschema
import pytest

from chogori.chat.completer import (
    ChatRequest,
    Completion,
    ContentDelta,
    Event,
    Finished,
    JsonFormat,
    NamedTool,
    Sampling,
    Started,
    TextRequest,
    ToolCallBegin,
    ToolCallDelta,
    ToolChoice,
    Usage,
    complete,
)
from chogori.chat.messages import Message, ToolCall, ToolSpec
from chogori.chat.template import render
from chogori.engine.completer import EngineCompleter
from chogori.engine.engine import Engine
from chogori.engine.vocabulary import Vocabulary
from chogori.errors import BackendError, ContextLengthError, RequestError
from tests.engine.random_schemas import random_tool_schema

Make = Callable[..., EngineCompleter]
CITY = ToolSpec(name="get_city", parameters={"type": "object", "properties": {"n": {"type": "integer"}}})


@pytest.fixture
def make_completer(make_engine: Callable[..., Engine], vocabulary: Vocabulary) -> Make:
    """`make_completer(**changes of EngineConfig)`: a Completer over a started engine that is stopped at the end."""
    return lambda **changes: EngineCompleter(make_engine(**changes), vocabulary)


def chat(text: str = "Hello", **fields: object) -> ChatRequest:
    sampling = cast(Sampling, fields.pop("sampling", Sampling(max_tokens=12, seed=1)))
    return ChatRequest(messages=[Message(role="user", content=text)], sampling=sampling, **fields)  # pyright: ignore


def events_of(completer: EngineCompleter, request: ChatRequest | TextRequest) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in completer.stream(request)]

    return asyncio.run(collect())


def answer(completer: EngineCompleter, request: ChatRequest | TextRequest) -> Completion:
    return asyncio.run(complete(completer, request))


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, ContentDelta) and event.choice == choice)


def test_events_come_in_the_protocols_order(make_completer: Make, vocabulary: Vocabulary) -> None:
    request = chat()
    events = events_of(make_completer(), request)
    prompt = render(request.messages, tokenizer=vocabulary.tokenizer, add_generation_prompt=True).ids
    assert events[0] == Started(prompt_tokens=len(prompt))
    assert isinstance(events[-2], Finished)
    assert isinstance(events[-1], Usage)
    assert events[-1].prompt_tokens == len(prompt)
    assert 1 <= events[-1].completion_tokens <= 12
    assert all(isinstance(event, ContentDelta) and event.text for event in events[1:-2])


def test_one_seed_gives_one_answer_and_each_choice_its_own(make_completer: Make) -> None:
    completer = make_completer()
    request = chat(sampling=Sampling(max_tokens=12, seed=5, num_choices=3))
    first, second = events_of(completer, request), events_of(completer, request)
    texts = [text_of(first, choice) for choice in range(3)]
    assert texts == [text_of(second, choice) for choice in range(3)]
    assert len(set(texts)) == 3
    assert [event.choice for event in first if isinstance(event, Finished)].count(2) == 1
    alone = chat(sampling=Sampling(max_tokens=12, seed=5))
    assert text_of(events_of(completer, alone)) == texts[0]
    counted = [event for event in first if isinstance(event, Usage)]
    assert counted[0].completion_tokens <= 36


def test_a_repeated_prompt_is_found_in_the_cache(make_completer: Make) -> None:
    completer = make_completer()
    request = chat("Hello " * 20)
    first, second = answer(completer, request), answer(completer, request)
    size = completer.engine.config.block_tokens
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == (second.usage.prompt_tokens - 1) // size * size
    assert second.choices == first.choices


@pytest.mark.parametrize("num_chars", [1, 2, 4])
def test_a_stop_text_ends_the_answer_before_it(make_completer: Make, num_chars: int) -> None:
    completer = make_completer()
    whole = answer(completer, chat(sampling=Sampling(max_tokens=40, seed=3, ignore_eos=True)))
    text = whole.choices[0].message.content
    stop = text[10 : 10 + num_chars]
    place = text.index(stop)
    stopped = answer(completer, chat(sampling=Sampling(max_tokens=40, seed=3, ignore_eos=True, stop=(stop, "\0never"))))
    assert stopped.choices[0].message.content == text[:place]
    assert (stopped.choices[0].finish_reason, stopped.choices[0].stop_sequence) == ("stop", stop)
    assert stopped.usage.completion_tokens < whole.usage.completion_tokens == 40
    assert completer.engine.state().cache_tokens_used == 0


def test_log_probabilities_cover_the_content_and_nothing_else(make_completer: Make, vocabulary: Vocabulary) -> None:
    completer = make_completer()
    sampling = Sampling(max_tokens=16, seed=2, logprobs=True, top_logprobs=3, ignore_eos=True)
    choice = answer(completer, chat(sampling=sampling)).choices[0]
    assert len(choice.logprobs) == 16
    written = b"".join(entry.text for entry in choice.logprobs)
    assert written.decode("utf-8", "replace") == choice.message.content
    for entry in choice.logprobs:
        assert (entry.logprob or 0) <= 0
        assert len(entry.top) <= 3
        assert [top[2] for top in entry.top] == sorted((top[2] for top in entry.top), reverse=True)
    sampling = Sampling(max_tokens=80, seed=2, logprobs=True)
    called = answer(completer, chat(tools=[CITY], tool_choice="required", sampling=sampling))
    assert called.choices[0].logprobs == ()
    assert called.choices[0].message.tool_calls


def test_a_text_is_continued_and_may_be_repeated_first(make_completer: Make, vocabulary: Vocabulary) -> None:
    completer = make_completer()
    sampling = Sampling(max_tokens=8, seed=1)
    by_text = answer(completer, TextRequest(prompt="def f", sampling=sampling))
    ids = [vocabulary.tokenizer.bos_id, *vocabulary.tokenizer.encode("def f")]
    assert answer(completer, TextRequest(prompt=ids, sampling=sampling)).choices == by_text.choices
    echoed = answer(completer, TextRequest(prompt="def f", sampling=sampling, echo=True))
    assert echoed.choices[0].message.content == "def f" + by_text.choices[0].message.content
    with pytest.raises(RequestError, match=r"prompt\[1\] is 500; expected a token id below 500"):
        answer(completer, TextRequest(prompt=[1, 500], sampling=sampling))


@pytest.mark.parametrize("prompt", ["def f(山):", [5, 6, 300, 7]], ids=["text", "ids"])
def test_an_echoed_prompt_is_scored_and_goes_on_as_it_would(
    make_completer: Make, vocabulary: Vocabulary, prompt: str | list[int]
) -> None:
    """What a continuation was produced with is what it is scored with, so a whole text can be scored at once."""
    completer, tokenizer = make_completer(), vocabulary.tokenizer
    sampling = Sampling(max_tokens=6, temperature=0, logprobs=True, top_logprobs=2, num_choices=2, ignore_eos=True)
    whole = answer(completer, TextRequest(prompt=prompt, sampling=sampling, echo=True))
    plain = answer(completer, TextRequest(prompt=prompt, sampling=sampling))
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    for choice, alone in zip(whole.choices, plain.choices, strict=True):
        assert [entry.token_id for entry in choice.logprobs[: len(ids)]] == ids
        assert [entry.logprob is None for entry in choice.logprobs] == [True] + [False] * (len(ids) + 5)
        written = b"".join(entry.text for entry in choice.logprobs)
        assert written.decode("utf-8", "replace") == choice.message.content
        assert choice.logprobs[len(ids) :] == alone.logprobs
    produced = [entry.token_id for entry in plain.choices[0].logprobs if entry.token_id is not None]
    head = [tokenizer.bos_id, *ids] if isinstance(prompt, str) else ids
    reading = Sampling(max_tokens=0, logprobs=True)
    scored = answer(completer, TextRequest(prompt=[*head, *produced], sampling=reading, echo=True))
    assert scored.usage.completion_tokens == 0
    assert [entry.logprob for entry in scored.choices[0].logprobs[-6:]] == pytest.approx(
        [entry.logprob for entry in plain.choices[0].logprobs], abs=1e-4
    )


def test_the_end_of_a_text_is_reported_and_that_of_a_message_is_not(
    make_completer: Make, vocabulary: Vocabulary
) -> None:
    """Who scores a text asks for one token more and drops the last entry: there must be one."""
    completer = make_completer()
    sampling = Sampling(max_tokens=3, logprobs=True, logit_bias={vocabulary.im_end: 100.0})
    ended = answer(completer, TextRequest(prompt="a", sampling=sampling, echo=True)).choices[0]
    assert (ended.message.content, ended.finish_reason) == ("a", "stop")
    assert [entry.token_id for entry in ended.logprobs][1:] == [vocabulary.im_end]
    assert answer(completer, chat(sampling=sampling)).choices[0].logprobs == ()


def test_a_partial_message_is_continued(make_completer: Make, vocabulary: Vocabulary) -> None:
    completer = make_completer()
    opening = Message(role="assistant", content="Once upon", partial=True)
    request = ChatRequest(
        messages=[Message(role="user", content="x"), opening], sampling=Sampling(max_tokens=5, seed=1)
    )
    events = events_of(completer, request)
    prompt = render(request.messages, tokenizer=vocabulary.tokenizer).ids
    assert cast(Started, events[0]).prompt_tokens == len(prompt)
    assert not text_of(events).startswith("Once upon")


def test_calls_are_numbered_over_the_whole_conversation(make_completer: Make) -> None:
    messages = [
        Message(role="user", content="x"),
        Message(role="assistant", tool_calls=(ToolCall(id="call_a", name="get_city", arguments="{}"),) * 1),
        Message(role="tool", tool_call_id="call_a", content="1"),
        Message(role="user", content="and now"),
    ]
    named, sampling = NamedTool(name="get_city"), Sampling(max_tokens=80, seed=1)
    request = ChatRequest(messages=messages, tools=[CITY], tool_choice=named, sampling=sampling)
    events = events_of(make_completer(), request)
    assert [event.id for event in events if isinstance(event, ToolCallBegin)] == ["functions.get_city:1"]
    finished = [event for event in events if isinstance(event, Finished)]
    assert finished == [Finished(choice=0, reason="tool_calls")]


def test_declared_tools_are_hidden_where_none_may_be_called(make_completer: Make) -> None:
    completer = make_completer()
    none = chat(tools=[CITY], tool_choice="none")
    assert completer.count_tokens(none) == completer.count_tokens(chat())
    assert completer.count_tokens(chat(tools=[CITY])) > completer.count_tokens(none)


def test_json_is_json_also_beside_tools(make_completer: Make) -> None:
    completer = make_completer()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for seed in range(10):
        for tools in ((), (CITY,)):
            sampling = Sampling(max_tokens=60, seed=seed)
            message = (
                answer(completer, chat(response_format=JsonFormat(schema=schema), tools=tools, sampling=sampling))
                .choices[0]
                .message
            )
            if message.content:
                jsonschema.validate(json.loads(message.content), schema)
            else:
                assert message.tool_calls


def test_closing_the_stream_frees_everything_at_once(make_completer: Make) -> None:
    completer = make_completer()
    engine = completer.engine

    async def leave_early() -> None:
        request = chat(sampling=Sampling(max_tokens=400, num_choices=4, ignore_eos=True))
        async with aclosing(completer.stream(request)) as events:
            async for event in events:
                if isinstance(event, ContentDelta):
                    break
        assert engine.state().running > 0 or engine.state().waiting >= 0
        # Two steps suffice: the one under way, and the one that finds the answers cancelled.
        before = engine.state().steps
        while engine.state().running or engine.state().waiting:
            assert engine.state().steps <= before + 2
            await asyncio.sleep(0.001)

    asyncio.run(leave_early())
    assert engine.state().cache_tokens_used == 0


def test_a_stopped_engine_ends_its_streams_with_an_error(make_completer: Make) -> None:
    completer = make_completer()

    async def stop_early() -> None:
        request = chat(sampling=Sampling(max_tokens=400, ignore_eos=True))
        async for event in completer.stream(request):
            if isinstance(event, ContentDelta):
                await asyncio.to_thread(completer.engine.stop)

    with pytest.raises(BackendError, match="the engine was stopped"):
        asyncio.run(stop_early())
    with pytest.raises(BackendError, match="shutting down"):
        answer(completer, chat())


def test_a_prompt_without_room_is_refused_by_its_size(make_completer: Make) -> None:
    with pytest.raises(ContextLengthError, match=r"the prompt has \d+ tokens; expected at least 1, and at most 511"):
        answer(make_completer(), chat("Hello " * 600))


NUM_SCHEMA_REQUESTS = 2_000
"""The bar: this many calls with random schemas and weights, all of them valid."""


def test_every_call_of_two_thousand_requests_is_valid(make_completer: Make) -> None:
    """Required, named and auto; for one in twenty the whole answer is asked for too, and equals the stream."""
    completer = make_completer(cache_tokens=32_768)
    random_ = random.Random(0)
    counts: Counter[str] = Counter()

    async def ask(number: int, places: asyncio.Semaphore) -> None:
        # The model reads their names alone: schemas say nothing to random weights, and reading them takes long.
        tools = [
            ToolSpec(name=f"tool_{i}", parameters=random_tool_schema(random_), declaration={"name": f"tool_{i}"})
            for i in range(random_.randint(1, 3))
        ]
        choices: list[ToolChoice] = ["auto", "required", NamedTool(name="tool_0")]
        choice = random_.choice(choices)
        sampling = Sampling(max_tokens=random_.choice([20, 60, 120, 250]), seed=number, temperature=1.5)
        prompt = [Message(role="user", content="call")]
        request = ChatRequest(messages=prompt, tools=tools, tool_choice=choice, sampling=sampling)
        async with places:
            events = [event async for event in completer.stream(request)]
        schemas = {tool.name: tool.parameters for tool in tools}
        arguments: dict[int, str] = {}
        names: dict[int, str] = {}
        for event in events:
            if isinstance(event, ToolCallBegin):
                names[event.index], arguments[event.index] = event.name, ""
            elif isinstance(event, ToolCallDelta):
                arguments[event.index] += event.arguments
        for index, text in arguments.items():
            jsonschema.validate(json.loads(text), schemas[names[index]])
            counts["valid calls"] += 1
        finished = next(event for event in events if isinstance(event, Finished))
        assert (finished.reason == "tool_calls") == bool(arguments)
        if choice != "auto" and not arguments:
            assert finished.reason == "length"
            counts["no room"] += 1
        if number % 20 == 0:
            whole = (await complete(completer, request)).choices[0]
            assert whole.finish_reason == finished.reason
            assert [call.arguments for call in whole.message.tool_calls] == list(arguments.values())
            assert whole.message.content == text_of(events)

    async def ask_all() -> None:
        places = asyncio.Semaphore(64)
        await asyncio.gather(*(ask(number, places) for number in range(NUM_SCHEMA_REQUESTS)))

    asyncio.run(ask_all())
    assert counts["valid calls"] >= 0.5 * NUM_SCHEMA_REQUESTS, counts
    assert counts["no room"] <= 0.2 * NUM_SCHEMA_REQUESTS, counts
    assert completer.engine.state().cache_tokens_used == 0
