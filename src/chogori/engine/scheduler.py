"""Who goes next: waiting answers enter in the order they came, prompts take turns, answers under way always advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch

from chogori.engine.answer import Answer
from chogori.engine.config import EngineConfig
from chogori.engine.prefix_cache import Node, PrefixCache, num_blocks_for, num_in_place, slots_of
from chogori.engine.step_batch import SPAN_TOKENS, DecodeRow, PromptPiece
from chogori.errors import CompleterError, OverloadedError, PinLimitError

RETRY_BESIDE_PINS_S = 60.0
"""When to come again where pinned prefixes leave too little room: they expire by the minute."""


class Scheduler:
    """Admits answers, lays out steps, and keeps account of blocks. Used by one thread."""

    def __init__(self, config: EngineConfig, cache: PrefixCache) -> None:
        self.config = config
        self.cache = cache
        self.waiting: deque[Answer] = deque()
        self.reading: deque[Answer] = deque()
        self.producing: list[Answer] = []
        self.pinned: list[Answer] = []
        """Those that stay, once they are read."""
        self.num_pinned = 0
        """Blocks that they hold; those that several share count once."""

    @property
    def num_running(self) -> int:
        """Answers that hold blocks."""
        return len(self.reading) + len(self.producing)

    def num_blocks(self, answer: Answer) -> int:
        """Blocks for an answer at its longest. The last token's latent is never needed."""
        return num_blocks_for(len(answer.prompt) + max(answer.max_tokens, 1) - 1, self.config.block_tokens)

    @property
    def pinned_blocks(self) -> set[int]:
        """Blocks of prefixes that stay, those that are still read included."""
        staying = [*self.pinned, *(answer for answer in self.reading if answer.stays)]
        return {block for answer in staying for block in answer.blocks}

    def admit(self) -> list[tuple[Answer, CompleterError]]:
        """Let waiting answers in while there is a place and room for all that they may become.

        Returns those that pinned prefixes leave no room for, however long they wait, and why.
        """
        refused: list[tuple[Answer, CompleterError]] = []
        while self.waiting and self.num_running < self.config.max_running:
            answer = self.waiting[0]
            reason = self._refusal(answer) if answer.stays else None
            if reason is None and self._enter(answer):
                self.reading.append(self.waiting.popleft())
                continue
            reason = reason or self._refusal(answer)
            if reason is None:
                break
            refused.append((self.waiting.popleft(), reason))
        return refused

    def _refusal(self, answer: Answer) -> CompleterError | None:
        """Why an answer will never find room beside the pinned prefixes, if that is so."""
        pinned, size = self.pinned_blocks, self.config.block_tokens
        wanted = self.num_blocks(answer) - sum(node.block in pinned for node in self._known_prefix(answer))
        limit = int(self.config.pinned_share * self.cache.num_blocks)
        if answer.stays and len(pinned) + wanted > limit:
            return PinLimitError(
                f"{wanted * size} more tokens are to be pinned, beside {len(pinned) * size}; expected at most "
                f"{limit * size} in all (engine.pinned_share of engine.cache_tokens)"
            )
        room = self.cache.num_blocks - len(pinned)
        if wanted > room:
            return OverloadedError(
                f"the answer needs room for {wanted * size} tokens of the cache, prompt and max_tokens together, and "
                f"pinned prefixes leave {room * size}; ask for fewer, or come back when they have expired",
                retry_after_s=RETRY_BESIDE_PINS_S,
            )
        return None

    def _known_prefix(self, answer: Answer) -> list[Node]:
        """Cached blocks that an answer may use."""
        if not self.config.reuse_prefixes or answer.scores_prompt:
            return []
        # The last token is always read, since its logits are wanted. What a seed reproduces must not depend on whether
        # a prefix was read or produced, so a seeded answer reuses only what was read.
        return self.cache.match(answer.prompt[:-1], exact_only=answer.sampling.seed is not None)

    def _enter(self, answer: Answer) -> bool:
        cache, size = self.cache, self.config.block_tokens
        path = self._known_prefix(answer)
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
        answer.num_in_place = num_in_place(answer.blocks) * size
        return True

    def next_step(self) -> tuple[list[Answer], list[Answer], list[DecodeRow], list[PromptPiece]]:
        """Answers that produce a token, answers that read a piece of their prompt, and the rows of each."""
        rows = [
            DecodeRow(
                token=answer.tokens[-1],
                position=answer.num_computed,
                slots_S=answer.slots_S,
                num_in_place=answer.num_in_place,
            )
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
            num_in_place=answer.num_in_place,
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

    def pin(self, answer: Answer) -> None:
        """The prompt of an answer that stays is read: hold every block of it where others find it."""
        cache, size = self.cache, self.config.block_tokens
        known = cache.match(answer.prompt)
        spare: list[int] = []
        for i in range(len(answer.path), len(answer.prompt) // size):
            parent, block = (answer.path[-1] if answer.path else None), answer.blocks[i]
            if i >= len(known):
                node = cache.insert(parent, answer.token_range(i * size, (i + 1) * size), block, exact=True)
                assert node is not None, "nothing behind the known prefix is cached"
            else:
                node = known[i]
                cache.hold([node])
                # Seeded answers find the whole prefix only if every block of it was read.
                if not node.exact and node.holders == 1:
                    cache.supersede(node, block)
                else:
                    spare.append(block)
            answer.path.append(node)
        cache.give_back(spare)
        answer.blocks = [node.block for node in answer.path]
        self.reading.remove(answer)
        self.pinned.append(answer)
        self.num_pinned = len({block for other in self.pinned for block in other.blocks})

    def remove(self, answer: Answer) -> None:
        """Take an answer out, wherever it is; what it held is free at once."""
        for place in (self.waiting, self.reading, self.producing, self.pinned):
            if answer in place:
                place.remove(answer)
        self.cache.release(answer.path)
        self.cache.give_back(answer.blocks[len(answer.path) :])
        answer.path, answer.blocks = [], []
        if answer.stays:
            self.num_pinned = len({block for other in self.pinned for block in other.blocks})

    def everyone(self) -> Iterable[Answer]:
        """All answers that want something done, waiting ones included."""
        return [*self.waiting, *self.reading, *self.producing]
