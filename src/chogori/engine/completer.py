"""The engine as a Completer: conversations in, typed events out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from chogori.chat.completer import (
    ChatRequest,
    ContentDelta,
    Event,
    Finished,
    FinishReason,
    Sampling,
    Started,
    TextRequest,
    TokenLogprob,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from chogori.chat.stop_texts import StopTexts
from chogori.chat.template import render
from chogori.chat.token_text import TokenText
from chogori.chat.tokenizer import Tokenizer
from chogori.chat.tool_call_events import CallArguments, CallBegin, ParsedEvent, Text
from chogori.chat.tool_call_parser import TokenParser
from chogori.chat.tool_ids import canonical_tool_ids
from chogori.engine.answer import Answer, Ended, Output, Produced, PromptRead, Sink
from chogori.engine.constraints import Constraint, Constraints
from chogori.engine.engine import Engine
from chogori.engine.sampling import Likelihood
from chogori.engine.vocabulary import Vocabulary
from chogori.errors import BackendError, CompleterError, RequestError


class EngineCompleter:
    """Answers with the built-in engine. The engine is started and stopped by its owner."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary) -> None:
        self.engine = engine
        self.tokenizer = vocabulary.tokenizer
        self._vocabulary = vocabulary
        self._constraints = Constraints(vocabulary)

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the rendered prompt, generation prompt included."""
        return len(self._prompt(request))

    async def stream(self, request: ChatRequest | TextRequest) -> AsyncGenerator[Event]:
        """Answer a request; see `Completer`."""
        sampling = request.sampling
        scores = isinstance(request, TextRequest) and request.echo and sampling.logprobs
        # In a thread: a long prompt or a schema with thousands of properties would hold up every other stream.
        prompt, constraints = await asyncio.to_thread(self._prepare, request)
        outputs: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        answers: list[Answer] = []
        texts = [self._text_of(request, choice) for choice in range(sampling.num_choices)]
        cached_tokens = 0
        num_open = sampling.num_choices
        try:
            sink = _sink(outputs, 0)
            answers.append(self.engine.submit(prompt, sampling, constraints[0], sink, scores_prompt=scores))
            while num_open:
                choice, output = await outputs.get()
                match output:
                    case PromptRead():
                        if choice == 0:
                            cached_tokens = output.cached_tokens
                            yield Started(prompt_tokens=len(prompt), cached_tokens=cached_tokens)
                            if isinstance(request, TextRequest) and request.echo:
                                logprobs = self._echo_logprobs(request, prompt, output.likelihoods) if scores else ()
                                for i in range(sampling.num_choices):
                                    yield ContentDelta(choice=i, text=self._echo(request), logprobs=logprobs)
                            # The others find the prompt in the cache.
                            for i in range(1, sampling.num_choices):
                                sink = _sink(outputs, i)
                                answers.append(self.engine.submit(prompt, sampling, constraints[i], sink, choice=i))
                    case Produced():
                        text = texts[choice]
                        if text.finished:
                            continue
                        for event in text.feed(output):
                            yield event
                        if text.finished:
                            self.engine.cancel(answers[choice])
                    case Ended():
                        num_open -= 1
                        for event in texts[choice].finish(output):
                            yield event
            yield Usage(
                prompt_tokens=len(prompt),
                completion_tokens=sum(text.num_tokens for text in texts),
                cached_tokens=cached_tokens,
            )
        finally:
            for answer in answers:
                self.engine.cancel(answer)

    def count_prefix(self, request: ChatRequest) -> int:
        """Tokens that a request's messages and tools are at the beginning of a longer conversation."""
        return len(self._prompt(request, is_answered=False))

    async def pin(self, request: ChatRequest) -> PinnedPrompt:
        """Read the beginning of later conversations, beside other answers, and keep it until it is released.

        The request's sampling has no effect. Raises PinLimitError where pinned prefixes already fill their share of the
        cache, RequestError where prefixes are not reused at all, and what `Engine.submit` raises.
        """
        if not self.engine.config.reuse_prefixes:
            raise RequestError("the engine reuses no prefixes (engine.reuse_prefixes), so none can be kept")
        prompt = await asyncio.to_thread(self._prompt, request, is_answered=False)
        # Only whole blocks are shared.
        whole = prompt[: len(prompt) // self.engine.config.block_tokens * self.engine.config.block_tokens]
        if not whole:
            return PinnedPrompt(num_tokens=len(prompt), answer=None, engine=self.engine)
        outputs: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        # With a seed only what was read counts as read already: seeded and other answers find all of it then.
        only_read = Sampling(max_tokens=0, seed=0)
        answer = self.engine.submit(
            whole, only_read, self._constraints.of_text(ignore_end=False), _sink(outputs, 0), stays=True
        )
        try:
            _, output = await outputs.get()
        except asyncio.CancelledError:
            self.engine.cancel(answer)
            raise
        if isinstance(output, Ended):
            _raise_failure(output)
        return PinnedPrompt(num_tokens=len(prompt), answer=answer, engine=self.engine)

    def _prompt(self, request: ChatRequest, *, is_answered: bool = True) -> list[int]:
        tools = () if request.tool_choice == "none" else request.tools
        return render(request.messages, tools, tokenizer=self.tokenizer, add_generation_prompt=is_answered).ids

    def _prepare(self, request: ChatRequest | TextRequest) -> tuple[list[int], list[Constraint]]:
        """The prompt, and one constraint for each choice."""
        sampling = request.sampling
        if isinstance(request, TextRequest):
            constraint = self._constraints.of_text(ignore_end=sampling.ignore_eos)
            return self._text_prompt(request.prompt), [constraint] * sampling.num_choices
        first_index = canonical_tool_ids(request.messages).ids.next_index
        constraints = [self._constraints.of_chat(request, first_index=first_index) for _ in range(sampling.num_choices)]
        return self._prompt(request), constraints

    def _text_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        for place, token in enumerate(prompt):
            if not 0 <= token < self.tokenizer.vocab_size:
                raise RequestError(
                    f"prompt[{place}] is {token}; expected a token id below {self.tokenizer.vocab_size}", field="prompt"
                )
        return list(prompt)

    def _echo(self, request: TextRequest) -> str:
        return request.prompt if isinstance(request.prompt, str) else self.tokenizer.decode(request.prompt)

    def _echo_logprobs(
        self, request: TextRequest, prompt: Sequence[int], likelihoods: Sequence[Likelihood]
    ) -> tuple[TokenLogprob, ...]:
        """Of the tokens that are echoed, to which the mark before a text does not belong. The first has none, as in
        OpenAI's API, also behind that mark."""
        first = 1 if isinstance(request.prompt, str) else 0
        echoed, known = prompt[first:], [None, *likelihoods[first:]]
        return tuple(_token_logprob(self.tokenizer, token, known[place]) for place, token in enumerate(echoed))

    def _text_of(self, request: ChatRequest | TextRequest, choice: int) -> _ChoiceText:
        stops = StopTexts(request.sampling.stop)
        if isinstance(request, TextRequest):
            return _PlainText(self._vocabulary, stops, choice)
        return _ChatText(self._vocabulary, stops, choice)


@dataclass(frozen=True, kw_only=True)
class PinnedPrompt:
    """The beginning of conversations, kept in the cache until `release`."""

    num_tokens: int
    """Of the whole beginning; those of its last, partial block are read again by each conversation."""
    answer: Answer | None
    """What holds the blocks; None where the beginning is shorter than one."""
    engine: Engine

    def release(self) -> None:
        """Free the blocks before the engine's next step. Safe from any thread, and more than once."""
        if self.answer is not None:
            self.engine.cancel(self.answer)


class _ChoiceText:
    """The events of one choice, from its tokens."""

    _reports_end = False
    """Whether the log-probabilities end with the end token's; those of a message are of its content alone."""

    def __init__(self, vocabulary: Vocabulary, stops: StopTexts, choice: int) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._stops = stops
        self._choice = choice
        self._logprobs: list[TokenLogprob] = []
        self.num_tokens = 0
        self.finished = False
        """Whether a stop text ended the choice, whatever its answer still produces."""

    def feed(self, produced: Produced) -> Iterator[Event]:
        """Events of one more token."""
        self.num_tokens += 1
        if produced.likelihood is not None:
            self._logprobs.append(_token_logprob(self._tokenizer, produced.token, produced.likelihood))
        yield from self._events(produced.token)
        if self._stops.found is not None:
            self.finished = True
            yield Finished(choice=self._choice, reason="stop", stop_sequence=self._stops.found)

    def finish(self, ended: Ended) -> Iterator[Event]:
        """The last events. Raises BackendError when the engine failed or was stopped."""
        if self.finished:
            return
        _raise_failure(ended)
        self.num_tokens = ended.num_tokens
        if ended.end is not None and self._reports_end:
            self._logprobs.append(_token_logprob(self._tokenizer, ended.end.token, ended.end.likelihood))
        yield from self._rest()
        if self._stops.found is not None:
            yield Finished(choice=self._choice, reason="stop", stop_sequence=self._stops.found)
            return
        yield from self._content(self._stops.finish(), is_last=True)
        yield Finished(choice=self._choice, reason=self._reason(ended))

    def _events(self, token: int) -> Iterator[Event]:
        raise AssertionError("each form of text has its own")

    def _rest(self) -> Iterator[Event]:
        raise AssertionError("each form of text has its own")

    def _reason(self, ended: Ended) -> FinishReason:
        return "length" if ended.reason == "length" else "stop"

    def _content(self, text: str, *, is_last: bool = False) -> Iterator[Event]:
        """A delta of text, with the log-probabilities of the tokens since the last one."""
        if text or (is_last and self._logprobs):
            yield ContentDelta(choice=self._choice, text=text, logprobs=tuple(self._logprobs))
            self._logprobs.clear()


class _PlainText(_ChoiceText):
    """A continued text."""

    _reports_end = True

    def __init__(self, vocabulary: Vocabulary, stops: StopTexts, choice: int) -> None:
        super().__init__(vocabulary, stops, choice)
        self._text = TokenText(vocabulary.tokenizer)

    def _events(self, token: int) -> Iterator[Event]:
        yield from self._content(self._stops.feed(self._text.feed([token])))

    def _rest(self) -> Iterator[Event]:
        yield from self._content(self._stops.feed(self._text.finish()))


class _ChatText(_ChoiceText):
    """An assistant's message: content, and calls that the constraint keeps whole."""

    def __init__(self, vocabulary: Vocabulary, stops: StopTexts, choice: int) -> None:
        super().__init__(vocabulary, stops, choice)
        self._parser = TokenParser(vocabulary.tokenizer)
        self._section_begin = vocabulary.section_begin
        self._calls = False
        self._num_calls = 0

    def _events(self, token: int) -> Iterator[Event]:
        # Nothing but calls follows the marker that opens their section.
        self._calls = self._calls or token == self._section_begin
        if self._calls and self._logprobs and self._logprobs[-1].token_id == token:
            self._logprobs.pop()  # those of calls belong to no content
        yield from self._parsed(self._parser.feed([token]))

    def _rest(self) -> Iterator[Event]:
        yield from self._parsed(self._parser.finish())

    def _parsed(self, parsed: Sequence[ParsedEvent]) -> Iterator[Event]:
        for event in parsed:
            match event:
                case Text(text=text):
                    yield from self._content(self._stops.feed(text))
                case CallBegin(index=index, id=call_id, name=name):
                    # What precedes a call can no longer become a stop text.
                    yield from self._content(self._stops.finish(), is_last=True)
                    self._num_calls += 1
                    yield ToolCallBegin(choice=self._choice, index=index, id=call_id, name=name)
                case CallArguments(index=index, text=text):
                    yield ToolCallDelta(choice=self._choice, index=index, arguments=text)
                case _:
                    pass
            if self._stops.found is not None:
                return

    def _reason(self, ended: Ended) -> FinishReason:
        return "tool_calls" if self._num_calls else super()._reason(ended)


def _token_logprob(tokenizer: Tokenizer, token: int, likelihood: Likelihood | None) -> TokenLogprob:
    """A token with what is known of it."""
    text = tokenizer.decode_bytes([token])
    if likelihood is None:
        return TokenLogprob(token_id=token, text=text, logprob=None)
    top = tuple(
        (other, tokenizer.decode_bytes([other]), logprob)
        for other, logprob in likelihood.top
        if other < tokenizer.vocab_size
    )
    return TokenLogprob(token_id=token, text=text, logprob=likelihood.logprob, top=top)


def _raise_failure(ended: Ended) -> None:
    """Raise what ended an answer before its time, if something did."""
    if isinstance(ended.error, CompleterError):
        raise ended.error
    if ended.error is not None:
        raise BackendError(f"the engine failed: {ended.error}") from ended.error
    if ended.reason == "cancelled":
        raise BackendError("the engine was stopped")


def _sink(outputs: asyncio.Queue[tuple[int, Output]], choice: int) -> Sink:
    """Hands outputs from the engine's thread to the event loop of the caller."""
    loop = asyncio.get_running_loop()

    def deliver(output: Output) -> None:
        # A loop that was closed with requests under way wants nothing any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(outputs.put_nowait, (choice, output))

    return deliver
