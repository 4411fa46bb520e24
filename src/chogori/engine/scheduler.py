"""Who goes next: waiting answers enter in the order they came, prompts take turns, answers under way always advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch

from chogori.engine.answer import Answer
from chogori.engine.config import EngineConfig
from chogori.engine.prefix_cache import PrefixCache, num_blocks_for, slots_of
from chogori.engine.step_batch import SPAN_TOKENS, DecodeRow, PromptPiece


class Scheduler:
    """Admits answers, lays out steps, and keeps account of blocks. Used by one thread."""

    def __init__(self, config: EngineConfig, cache: PrefixCache) -> None:
        self.config = config
        self.cache = cache
        self.waiting: deque[Answer] = deque()
        self.reading: deque[Answer] = deque()
        self.producing: list[Answer] = []

    @property
    def num_running(self) -> int:
        """Answers that hold blocks."""
        return len(self.reading) + len(self.producing)

    def num_blocks(self, answer: Answer) -> int:
        """Blocks for an answer at its longest. The last token's latent is never needed."""
        return num_blocks_for(len(answer.prompt) + max(answer.max_tokens, 1) - 1, self.config.block_tokens)

    def admit(self) -> None:
        """Let waiting answers in while there is a place and room for all that they may become."""
        while self.waiting and self.num_running < self.config.max_running and self._enter(self.waiting[0]):
            self.reading.append(self.waiting.popleft())

    def _enter(self, answer: Answer) -> bool:
        cache, size = self.cache, self.config.block_tokens
        path = []
        if self.config.reuse_prefixes and not answer.scores_prompt:
            # The last token is always read, since its logits are wanted. What a seed reproduces must not depend on
            # whether a prefix was read or produced, so a seeded answer reuses only what was read.
            path = cache.match(answer.prompt[:-1], exact_only=answer.sampling.seed is not None)
        cache.hold(path)
        wanted = self.num_blocks(answer) - len(path)
        if wanted > cache.num_available:
            cache.release(path)
            return False
        answer.path = path
        answer.blocks = [node.block for node in path] + cache.take(wanted)
        answer.num_computed = answer.num_exact = answer.cached_tokens = len(path) * size
        if path and not path[-1].exact:
            answer.num_exact = sum(node.exact for node in path) * size
        slots = slots_of(answer.blocks, size)
        answer.slots_S = torch.zeros(-(-len(slots) // SPAN_TOKENS) * SPAN_TOKENS, dtype=torch.int64)
        answer.slots_S[: len(slots)] = torch.tensor(slots)
        return True

    def next_step(self) -> tuple[list[Answer], list[Answer], list[DecodeRow], list[PromptPiece]]:
        """Answers that produce a token, answers that read a piece of their prompt, and the rows of each."""
        rows = [
            DecodeRow(token=answer.tokens[-1], position=answer.num_computed, slots_S=answer.slots_S)
            for answer in self.producing
        ]
        readers: list[Answer] = []
        pieces: list[PromptPiece] = []
        budget = self.config.step_tokens
        for _ in range(len(self.reading)):
            piece = self._piece(self.reading[0])
            if readers and len(piece.tokens) > budget:
                break
            budget -= len(piece.tokens)
            readers.append(self.reading[0])
            pieces.append(piece)
            self.reading.rotate(-1)
        return list(self.producing), readers, rows, pieces

    def _piece(self, answer: Answer) -> PromptPiece:
        chunk, start = self.config.prefill_chunk_tokens, answer.num_computed
        # Where pieces end depends on the prompt alone: an answer must not depend on what else is read.
        stop = min((start // chunk + 1) * chunk, len(answer.prompt))
        return PromptPiece(
            tokens=answer.prompt[start:stop],
            start=start,
            slots_S=answer.slots_S,
            wants_logits=stop == len(answer.prompt),
            wants_every_row=answer.scores_prompt,
        )

    def advance(self, answer: Answer, num_tokens: int, *, exact: bool) -> None:
        """Count tokens as computed, and make the blocks that they filled findable."""
        if exact and answer.num_exact == answer.num_computed:
            answer.num_exact += num_tokens
        answer.num_computed += num_tokens
        size = self.config.block_tokens
        while (
            self.config.reuse_prefixes
            and answer.findable
            and (filled := len(answer.path) + 1) * size <= answer.num_computed
        ):
            node = self.cache.insert(
                answer.path[-1] if answer.path else None,
                answer.token_range((filled - 1) * size, filled * size),
                answer.blocks[filled - 1],
                exact=filled * size <= answer.num_exact,
            )
            if node is None:
                answer.findable = False
            else:
                answer.path.append(node)

    def start_producing(self, answer: Answer) -> None:
        """The prompt is read."""
        self.reading.remove(answer)
        self.producing.append(answer)

    def remove(self, answer: Answer) -> None:
        """Take an answer out, wherever it is; what it held is free at once."""
        for place in (self.waiting, self.reading, self.producing):
            if answer in place:
                place.remove(answer)
        self.cache.release(answer.path)
        self.cache.give_back(answer.blocks[len(answer.path) :])
        answer.path, answer.blocks = [], []

    def everyone(self) -> Iterable[Answer]:
        """All answers, waiting ones included."""
        return [*self.waiting, *self.reading, *self.producing]
