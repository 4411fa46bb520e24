"""The loop: one thread takes what was submitted, runs the model over all answers at once, and hands tokens out."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chogori.chat.completer import Sampling
from chogori.engine.answer import Answer, Ended, Produced, PromptRead, Sink
from chogori.engine.config import EngineConfig
from chogori.engine.constraints import Constraint
from chogori.engine.forward import PagedLatents, ServedModel
from chogori.engine.prefix_cache import PrefixCache
from chogori.engine.sampling import Logits, TokenSampler
from chogori.engine.scheduler import Scheduler
from chogori.engine.step_batch import PromptPiece, StepBatch
from chogori.errors import BackendError, ContextLengthError, NonFiniteError, OverloadedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """How busy an engine is."""

    running: int
    waiting: int
    cache_tokens_used: int
    """In blocks that answers or pinned prefixes hold."""
    cache_tokens_pinned: int
    """In blocks of pinned prefixes."""
    cache_tokens_kept: int
    """In blocks that nobody holds and that are kept for reuse."""
    cache_tokens_total: int
    steps: int
    """Since the start."""


class Engine:
    """Continuous batching over one model. `start` it before submitting; `stop` ends its thread.

    Args:
        model: prepared weights.
        end_ids: tokens that end an answer.
        config: see EngineConfig.
    """

    def __init__(self, model: ServedModel, end_ids: frozenset[int], config: EngineConfig) -> None:
        self.model = model
        self.config = config
        self.context_length = model.config.max_position_embeddings
        self._end_ids = end_ids
        num_blocks = config.cache_tokens // config.block_tokens + 1
        self._latents = PagedLatents(model.config, num_blocks * config.block_tokens, model.dtype, model.device)
        self._scheduler = Scheduler(config, PrefixCache(num_blocks, config.block_tokens))
        self._submitted: deque[Answer] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._num_open = 0
        self._num_steps = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work. An engine starts once."""
        assert self._thread is None, "an engine starts once"
        self._thread = threading.Thread(target=self._run, name="chogori-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End what runs with reason "cancelled", and the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        constraint: Constraint,
        sink: Sink,
        *,
        choice: int = 0,
        scores_prompt: bool = False,
        stays: bool = False,
    ) -> Answer:
        """Queue an answer; safe from any thread. `sink` receives its outputs, the last of which is Ended.

        With `scores_prompt`, PromptRead tells how likely each of the prompt's tokens was. No prefix is reused then, and
        the logits of a whole piece are held at once: `prefill_chunk_tokens` times the vocabulary, float32.

        With `stays`, the prompt, a whole number of blocks, is pinned: behind PromptRead nothing is produced, and other
        answers find the blocks until `cancel`. Ended comes then, or with PinLimitError where pins have no more room.

        Raises ContextLengthError where the prompt leaves no room for an answer, OverloadedError where too many wait.
        """
        wanted = self.config.default_max_tokens if sampling.max_tokens is None else sampling.max_tokens
        least = min(wanted, 1)
        room = self.context_length - len(prompt)
        if not prompt or room < least:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens; expected at least 1, and at most {self.context_length - least} "
                f"so that an answer fits into the model's context of {self.context_length}",
                field="messages",
            )
        cache_room = self.config.cache_tokens - len(prompt) + 1
        if cache_room < 1:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, and the cache holds {self.config.cache_tokens} "
                "(engine.cache_tokens); shorten it or enlarge the cache",
                field="messages",
            )
        answer = Answer(
            prompt=list(prompt),
            sampling=sampling,
            constraint=constraint,
            sampler=TokenSampler(sampling, prompt, choice=choice, num_rows=self.model.config.vocab_size),
            max_tokens=min(wanted, room, cache_room),
            sink=sink,
            scores_prompt=scores_prompt,
            stays=stays,
        )
        with self._wake:
            if self._stopping:
                raise BackendError("the engine is shutting down")
            if self._num_open >= self.config.max_waiting + self.config.max_running:
                raise OverloadedError(
                    f"{self._num_open} answers run or wait (engine.max_running + engine.max_waiting); try again later",
                    retry_after_s=1.0,
                )
            self._num_open += 1
            self._submitted.append(answer)
            self._wake.notify()
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop an answer or let a pinned prefix go; what it holds is free before the next step.

        Safe from any thread, and after its end.
        """
        with self._wake:
            answer.cancelled = True
            self._wake.notify()

    def state(self) -> EngineState:
        """How busy the engine is; approximate while a step runs."""
        scheduler, cache, size = self._scheduler, self._scheduler.cache, self.config.block_tokens
        return EngineState(
            running=scheduler.num_running,
            waiting=len(scheduler.waiting) + len(self._submitted),
            cache_tokens_used=(cache.num_blocks - cache.num_available) * size,
            cache_tokens_pinned=scheduler.num_pinned * size,
            cache_tokens_kept=cache.num_cached * size,
            cache_tokens_total=cache.num_blocks * size,
            steps=self._num_steps,
        )

    # ---- in the engine's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        # OpenMP keeps the number for each thread that sets it; this is the one that computes.
        torch.set_num_threads(self.config.threads)
        while True:
            with self._wake:
                while not (self._stopping or self._submitted or self._has_work()):
                    self._wake.wait()
                if self._stopping:
                    break
                self._scheduler.waiting.extend(self._submitted)
                self._submitted.clear()
            try:
                self._step()
            except Exception as error:
                # Whatever went wrong, nobody may wait for ever.
                for answer in list(self._scheduler.everyone()):
                    self._end(answer, Ended(reason="failed", num_tokens=len(answer.tokens), error=error))
        for answer in [*self._scheduler.everyone(), *self._scheduler.pinned, *self._submitted]:
            self._end(answer, Ended(reason="cancelled", num_tokens=len(answer.tokens)))

    def _has_work(self) -> bool:
        scheduler = self._scheduler
        return any(True for _ in scheduler.everyone()) or any(answer.cancelled for answer in scheduler.pinned)

    def _step(self) -> None:
        scheduler = self._scheduler
        for answer in [*scheduler.everyone(), *scheduler.pinned]:
            if answer.cancelled:
                self._end(answer, Ended(reason="cancelled", num_tokens=len(answer.tokens)))
        for answer, reason in scheduler.admit():
            self._end(answer, Ended(reason="failed", num_tokens=0, error=reason))
        producers, readers, rows, pieces = scheduler.next_step()
        if not rows and not pieces:
            return
        batch = StepBatch.of(rows, pieces, dtype=self.model.dtype, device=self.model.device)
        logits = iter(self.model.step(batch, self._latents).cpu().numpy())
        self._num_steps += 1
        for answer in producers:
            scheduler.advance(answer, 1, exact=False)
            self._continue(answer, next(logits))
        for answer, piece in zip(readers, pieces, strict=True):
            scheduler.advance(answer, len(piece.tokens), exact=True)
            self._note_read(answer, piece, list(itertools.islice(logits, piece.num_logit_rows)))

    def _note_read(self, answer: Answer, piece: PromptPiece, logits_RV: Sequence[Logits]) -> None:
        """Score a piece of a prompt where that is wanted, and begin the answer where it was the last one."""
        if piece.wants_every_row:
            try:
                self._score(answer, piece, logits_RV)
            except Exception as error:
                self._end(answer, Ended(reason="failed", num_tokens=0, error=error))
                return
        if piece.wants_logits and answer.stays:
            self._pin(answer)
        elif piece.wants_logits:
            self._scheduler.start_producing(answer)
            self._continue(answer, logits_RV[-1])

    def _pin(self, answer: Answer) -> None:
        """Keep the blocks of a prompt that is read; it is no longer among the answers that are open."""
        self._scheduler.pin(answer)
        with self._wake:
            self._num_open -= 1
        try:
            answer.sink(PromptRead(cached_tokens=answer.cached_tokens))
        except Exception as error:
            self._end(answer, Ended(reason="failed", num_tokens=0, error=error))

    def _score(self, answer: Answer, piece: PromptPiece, logits_TV: Sequence[Logits]) -> None:
        """How likely each token was that follows one of the piece."""
        first = piece.start + 1
        followers = answer.prompt[first : first + len(piece.tokens)]  # the prompt's last token has none
        for place, token in enumerate(followers):
            likelihood = answer.sampler.likelihood(logits_TV[place], token)
            if math.isnan(likelihood.logprob):
                raise NonFiniteError(f"the log-probability of prompt token {first + place} is nan; expected a number")
            answer.prompt_likelihoods.append(likelihood)

    def _continue(self, answer: Answer, logits_V: Logits) -> None:
        """The next token of one answer; an error in its rules or its sink ends it and no other."""
        try:
            if not answer.tokens:
                likelihoods = tuple(answer.prompt_likelihoods)
                answer.sink(PromptRead(cached_tokens=answer.cached_tokens, likelihoods=likelihoods))
                if not answer.constraint.begin(answer.room):
                    self._end(answer, Ended(reason="length", num_tokens=0))
                    return
            self._produce(answer, logits_V)
        except Exception as error:
            self._end(answer, Ended(reason="failed", num_tokens=len(answer.tokens), error=error))

    def _produce(self, answer: Answer, logits_V: Logits) -> None:
        """Choose the next token of an answer and hand it out."""
        constraint, room = answer.constraint, answer.room
        token = answer.sampler.choose(logits_V, constraint.allowed(room))
        token = constraint.accept(token, room)
        answer.sampler.note(token)
        answer.tokens.append(token)
        likelihood = answer.sampler.likelihood(logits_V, token) if answer.sampling.logprobs else None
        produced = Produced(token=token, likelihood=likelihood)
        if token in self._end_ids:
            end = produced if likelihood is not None else None
            self._end(answer, Ended(reason="stop", num_tokens=len(answer.tokens), end=end))
            return
        answer.sink(produced)
        if not answer.room:
            self._end(answer, Ended(reason="length", num_tokens=len(answer.tokens)))

    def _end(self, answer: Answer, ended: Ended) -> None:
        if answer.ended:
            return
        answer.ended = True
        was_open = answer not in self._scheduler.pinned
        self._scheduler.remove(answer)
        with self._wake:
            self._num_open -= was_open
        try:
            answer.sink(ended)
        except Exception:
            # Whoever no longer listens must not end the others' answers.
            logger.exception("an answer's sink failed")
