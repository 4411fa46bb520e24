"""Who goes when: reservations, turns, pieces, and the account of blocks."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.completer import Sampling
from chogori.engine.answer import Answer
from chogori.engine.config import EngineConfig
from chogori.engine.constraints import FreeText
from chogori.engine.prefix_cache import PrefixCache, num_in_place
from chogori.engine.sampling import TokenSampler
from chogori.engine.scheduler import Scheduler
from chogori.engine.step_batch import SPAN_TOKENS
from chogori.engine.vocabulary import Vocabulary
from chogori.errors import CompleterError, OverloadedError, PinLimitError

BLOCK = 4


class World:
    """A scheduler, and steps as the engine makes them, without a model."""

    def __init__(self, vocabulary: Vocabulary, *, blocks: int = 64, **changes: Any) -> None:
        settings: dict[str, Any] = {"prefill_chunk_tokens": 8, "step_tokens": 16, **changes}
        self.config = EngineConfig(block_tokens=BLOCK, cache_tokens=blocks * BLOCK, **settings)
        self.cache = PrefixCache(blocks + 1, BLOCK)
        self.scheduler = Scheduler(self.config, self.cache)
        self.refused: dict[int, CompleterError] = {}
        self._rules = FreeText(vocabulary)

    def answer(
        self, prompt: Sequence[int], max_tokens: int = 4, *, seed: int | None = None, stays: bool = False
    ) -> Answer:
        """An answer that waits."""
        sampling = Sampling(seed=seed)
        answer = Answer(
            prompt=list(prompt),
            sampling=sampling,
            constraint=self._rules,
            sampler=TokenSampler(sampling, prompt, choice=0, num_rows=8),
            max_tokens=max_tokens,
            sink=lambda output: None,
            stays=stays,
        )
        self.scheduler.waiting.append(answer)
        return answer

    def pin(self, prompt: Sequence[int]) -> Answer:
        """A prefix that waits to be pinned."""
        return self.answer(prompt, 0, seed=0, stays=True)

    def step(self) -> tuple[list[Answer], list[Answer]]:
        """Admit, lay out a step, take its tokens: those who produced, and those who read."""
        scheduler = self.scheduler
        for answer, reason in scheduler.admit():
            self.refused[id(answer)] = reason
        producers, readers, rows, pieces = scheduler.next_step()
        assert [row.token for row in rows] == [answer.tokens[-1] for answer in producers]
        for answer, row in zip(producers, rows, strict=True):
            assert row.position == answer.num_computed == len(answer.prompt) + len(answer.tokens) - 1
            scheduler.advance(answer, 1, exact=False)
        for answer, piece in zip(readers, pieces, strict=True):
            assert piece.start == answer.num_computed
            assert list(piece.tokens) == answer.prompt[piece.start : piece.start + len(piece.tokens)]
            scheduler.advance(answer, len(piece.tokens), exact=True)
            assert piece.wants_logits == (not answer.reads_prompt)
            if piece.wants_logits and answer.stays:
                scheduler.pin(answer)
            elif piece.wants_logits:
                scheduler.start_producing(answer)
        begun = [answer for answer in readers if not (answer.reads_prompt or answer.stays)]
        for answer in [*producers, *begun]:
            answer.tokens.append(len(answer.tokens))
            if not answer.room:
                scheduler.remove(answer)
        self.check()
        return producers, readers

    def check(self) -> None:
        """Nobody's blocks are another's, and what runs and what is available make up the cache."""
        held: dict[int, set[int]] = {}
        holders = [*self.scheduler.reading, *self.scheduler.producing, *self.scheduler.pinned]
        for answer in holders:
            assert len(answer.blocks) == self.scheduler.num_blocks(answer)
            assert [node.block for node in answer.path] == answer.blocks[: len(answer.path)]
            own = answer.blocks[len(answer.path) :]
            assert len(set(answer.blocks)) == len(answer.blocks)
            for block in own:
                assert block not in held, "a block that is nobody else's has two owners"
                held[block] = {id(answer)}
        shared = {node.block for answer in holders for node in answer.path}
        assert self.scheduler.num_pinned == len({b for answer in self.scheduler.pinned for b in answer.blocks})
        assert len(self.scheduler.pinned_blocks) <= int(self.config.pinned_share * self.cache.num_blocks)
        assert not shared & set(held)
        assert len(shared) + len(held) + self.cache.num_available == self.cache.num_blocks
        assert 0 not in shared | set(held)

    def run_out(self, limit: int = 10_000) -> int:
        """Steps until nobody is left."""
        steps = 0
        while self.scheduler.waiting or self.scheduler.num_running:
            self.step()
            steps += 1
            assert steps < limit, "somebody starves"
        return steps


def test_an_answer_enters_when_all_it_may_become_fits_and_not_before(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, blocks=5)
    first = world.answer(range(8), max_tokens=5)  # 8 + 4 tokens: the last needs no place
    second = world.answer(range(100, 107), max_tokens=2)  # 8 tokens
    third = world.answer(range(200, 203), max_tokens=2)  # 4 tokens
    world.step()
    assert first in world.scheduler.producing
    assert second in world.scheduler.producing
    assert list(world.scheduler.waiting) == [third]
    assert world.cache.num_available == 0
    while first.room:
        world.step()
    world.step()
    assert not world.scheduler.waiting


def test_those_who_wait_enter_in_order_even_where_a_later_one_would_fit(vocabulary: Vocabulary) -> None:
    """Or a large request would wait for ever behind small ones."""
    world = World(vocabulary, blocks=4)
    running = world.answer(range(4), max_tokens=5)  # two blocks
    large = world.answer(range(10, 22), max_tokens=5)  # four blocks
    small = world.answer(range(50, 52), max_tokens=2)  # one block
    world.step()
    assert list(world.scheduler.waiting) == [large, small]
    while running.room:
        world.step()
    world.step()
    assert large.blocks
    assert list(world.scheduler.waiting) == [small]
    world.run_out()


def test_no_more_run_than_are_let(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, max_running=3)
    answers = [world.answer(range(i * 10, i * 10 + 2)) for i in range(8)]
    while world.scheduler.waiting:
        world.step()
        assert world.scheduler.num_running <= 3
    world.run_out()
    assert all(not answer.room for answer in answers)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), reuse=st.booleans())
def test_pieces_end_at_multiples_of_the_chunk_or_with_the_prompt(
    vocabulary: Vocabulary, lengths: list[int], reuse: bool
) -> None:
    """So what an answer computes does not depend on who else reads, nor on where a cached prefix ended."""
    world = World(vocabulary, reuse_prefixes=reuse)
    answers = [world.answer([7] * length) for length in lengths]
    while world.scheduler.waiting or world.scheduler.num_running:
        _, readers = world.step()
        assert sum(1 for _ in readers) <= len(answers)
        for answer in readers:
            assert answer.num_computed % 8 == 0 or answer.num_computed >= len(answer.prompt)


def test_prompts_take_turns_and_a_short_one_does_not_wait_for_a_long_one(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, blocks=200)
    long = world.answer(range(400), max_tokens=1)
    shorts = [world.answer(range(1000 + 10 * i, 1006 + 10 * i), max_tokens=1) for i in range(4)]
    turns = Counter[int]()
    for _ in range(3):
        _, readers = world.step()
        assert sum(len(answer.prompt) if answer is not long else 8 for answer in readers) <= 16
        turns.update(map(id, readers))
    assert all(turns[id(short)] == 1 for short in shorts), "each was read once, within three steps"
    assert turns[id(long)] >= 1


def test_every_answer_that_produces_does_so_in_every_step(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, blocks=400)
    early = [world.answer([i, i], max_tokens=20) for i in range(5)]
    world.step()
    for i in range(10):
        world.answer(range(100 * i, 100 * i + 60), max_tokens=3)
    for step in range(1, 15):
        producers, readers = world.step()
        assert set(map(id, early)) <= set(map(id, producers))
        assert all(len(answer.tokens) == step + 1 for answer in early)
        assert readers, "and prompts are read beside them"


def test_a_piece_larger_than_the_budget_is_read_alone(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, step_tokens=1)
    answers = [world.answer(range(i * 100, i * 100 + 20), max_tokens=2) for i in range(3)]
    read = [reader for _ in range(9) for reader in world.step()[1]]
    assert read == answers * 3


@given(data=st.data())
def test_whoever_leaves_at_any_time_leaves_nothing_behind(vocabulary: Vocabulary, data: st.DataObject) -> None:
    """Random arrivals, prompts that begin alike, and departures in every state; everyone else finishes."""
    world = World(vocabulary, blocks=12, max_running=4)
    for _ in range(data.draw(st.integers(1, 40))):
        if data.draw(st.booleans()):
            length = data.draw(st.integers(1, 30))
            max_tokens = data.draw(st.integers(1, 48 - length + 1))
            seed = data.draw(st.sampled_from([None, 0]))
            world.answer([data.draw(st.integers(0, 1))] * length, max_tokens, seed=seed)
        everyone = list(world.scheduler.everyone())
        if everyone and data.draw(st.integers(0, 5)) == 0:
            world.scheduler.remove(data.draw(st.sampled_from(everyone)))
            world.check()
        world.step()
    world.run_out()
    assert world.cache.num_available == world.cache.num_blocks


def test_the_longest_answer_that_is_accepted_fits_an_empty_cache(vocabulary: Vocabulary) -> None:
    """Or it would wait for ever, and everyone behind it."""
    for blocks in (2, 3, 7):
        world = World(vocabulary, blocks=blocks)
        for length in range(1, blocks * BLOCK + 1):
            world.answer(range(length), max_tokens=blocks * BLOCK - length + 1)
        world.run_out()


@pytest.mark.parametrize("seed", [None, 3])
def test_prefixes_are_found_up_to_the_last_token_but_one(vocabulary: Vocabulary, seed: int | None) -> None:
    world = World(vocabulary)
    prompt = list(range(16))
    world.answer(prompt, max_tokens=6)
    world.run_out()
    again, longer = world.answer(prompt, seed=seed), world.answer([*prompt, 0, 1, 2, 3, 4, 9], seed=seed)
    other = world.answer([*prompt[:11], 99], seed=seed)
    world.step()
    assert again.cached_tokens == 12, "the last token is always read: its logits are wanted"
    assert other.cached_tokens == 8
    # The first answer was 0, 1, 2, 3, 4, 5: its first four are a block, of which no seeded answer may depend.
    assert longer.cached_tokens == (20 if seed is None else 16)
    assert longer.num_exact == 16 if seed is None else longer.num_exact >= 16
    world.run_out()


def test_reuse_can_be_switched_off(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, reuse_prefixes=False)
    for _ in range(2):
        answer = world.answer(range(16))
        world.run_out()
        assert answer.cached_tokens == 0
    assert world.cache.num_cached == 0


def test_slots_are_the_places_of_the_blocks_in_order_padded_to_whole_spans(vocabulary: Vocabulary) -> None:
    world = World(vocabulary)
    answer = world.answer(range(10), max_tokens=7)
    world.step()
    slots = answer.slots_S.tolist()
    assert len(slots) == SPAN_TOKENS
    assert slots[:16] == [block * BLOCK + place for block in answer.blocks for place in range(BLOCK)]
    assert not any(slots[16:])
    assert answer.num_in_place == 16
    assert num_in_place([7, 8, 9, 11, 12]) == 3


def test_of_two_equal_prompts_read_at_once_one_is_kept(vocabulary: Vocabulary) -> None:
    world = World(vocabulary)
    answers = [world.answer(range(24), max_tokens=3) for _ in range(2)]
    world.run_out()
    assert [answer.cached_tokens for answer in answers] == [0, 0]
    assert world.cache.num_cached == 6
    assert world.cache.num_available == world.cache.num_blocks


def test_a_pinned_prefix_outlives_everything_until_it_is_let_go(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, blocks=8)
    pin = world.pin(range(12))
    world.run_out()
    for i in range(20):  # fills the cache several times over
        world.answer(range(100 * i + 100, 100 * i + 116), max_tokens=2)
        world.run_out()
    hit = world.answer([*range(12), 99], max_tokens=2)
    world.run_out()
    assert hit.cached_tokens == 12
    assert world.cache.num_available == 5
    world.scheduler.remove(pin)
    world.check()
    assert world.cache.num_available == 8


def test_seeded_answers_find_a_pinned_prefix_that_others_had_produced(vocabulary: Vocabulary) -> None:
    """Were its blocks left as they were produced, what a seed gives would depend on them."""
    world = World(vocabulary)
    spoken = world.answer(range(8), max_tokens=9)
    world.run_out()
    whole = [*range(8), *spoken.tokens[:8]]
    assert [node.exact for node in world.cache.match(whole)] == [True, True, False, False]
    world.pin(whole)
    world.run_out()
    assert [node.exact for node in world.cache.match(whole)] == [True] * 4
    hit = world.answer([*whole, 99], max_tokens=1, seed=5)
    world.run_out()
    assert hit.cached_tokens == 16


def test_pins_have_their_share_and_the_same_prefix_counts_once(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, blocks=8, pinned_share=0.5)
    pins: list[Answer] = []
    for prompt in (range(12), range(12), [*range(12), *range(50, 54)]):
        pins.append(world.pin(prompt))
        world.run_out()
    assert not world.refused
    assert world.scheduler.num_pinned == 4
    fourth = world.pin(range(200, 204))
    world.run_out()
    reason = world.refused[id(fourth)]
    assert isinstance(reason, PinLimitError)
    assert str(reason) == (
        "4 more tokens are to be pinned, beside 16; expected at most 16 in all "
        "(engine.pinned_share of engine.cache_tokens)"
    )
    world.scheduler.remove(pins.pop())
    for gone in pins:
        assert len(world.cache.match(range(12))) == 3
        assert world.scheduler.num_pinned == 3
        world.scheduler.remove(gone)
    assert world.scheduler.num_pinned == 0


def test_an_answer_that_pins_leave_no_room_for_is_refused_and_those_behind_it_go_on(vocabulary: Vocabulary) -> None:
    world = World(vocabulary, blocks=8)
    world.pin(range(16))
    world.run_out()
    too_long, short = world.answer(range(100, 112), max_tokens=9), world.answer(range(200, 204))
    shares = world.answer([*range(16), *range(100, 112)], max_tokens=5)
    world.run_out()
    assert isinstance(world.refused[id(too_long)], OverloadedError)
    assert str(world.refused[id(too_long)]).startswith("the answer needs room for 20 tokens of the cache")
    assert not short.room
    assert not shares.room, "who shares the pinned prefix needs no room for it"


@given(data=st.data())
def test_pins_and_answers_come_and_go_in_any_order_and_nobody_waits_for_ever(
    vocabulary: Vocabulary, data: st.DataObject
) -> None:
    world = World(vocabulary, blocks=12, max_running=3, pinned_share=data.draw(st.sampled_from([0.0, 0.4, 0.9])))
    pins: list[Answer] = []
    for _ in range(data.draw(st.integers(1, 30))):
        prompt = [data.draw(st.integers(0, 1))] * data.draw(st.integers(1, 30))
        if data.draw(st.booleans()):
            pins.append(world.pin(prompt[: len(prompt) // BLOCK * BLOCK] or [3] * BLOCK))
        else:
            most = 48 - len(prompt) + 1
            world.answer(prompt, data.draw(st.integers(1, most)), seed=data.draw(st.sampled_from([None, 0])))
        gone = [*world.scheduler.everyone(), *world.scheduler.pinned]
        if data.draw(st.integers(0, 3)) == 0:
            world.scheduler.remove(data.draw(st.sampled_from(gone)))
            world.check()
        world.step()
    world.run_out()
    for pin in list(world.scheduler.pinned):
        assert len(world.cache.match(pin.prompt)) * BLOCK == len(pin.prompt)
        world.scheduler.remove(pin)
    assert world.cache.num_available == world.cache.num_blocks
