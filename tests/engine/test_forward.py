"""The served model against `K2Model`, and against itself: in pieces, in company, behind a prefix."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chogori.engine.forward import PagedLatents, ServedModel
from chogori.engine.step_batch import SPAN_TOKENS, DecodeRow, PromptPiece, StepBatch
from chogori.model import K2Config, K2Model, YarnConfig
from tests.engine.running import scatter

CHUNK = 32
BLOCK = 4
TINY = K2Config.preset("tiny")
CONFIGS = {
    "tiny": TINY,
    "full queries": TINY.replace(q_lora_rank=None),
    "YaRN": TINY.replace(yarn=YarnConfig(factor=4.0, original_max_position_embeddings=64, beta_fast=8.0, mscale=0.7)),
    "expert groups": TINY.replace(num_expert_groups=4, num_groups_per_token=2),
    "raw routing weights, two shared experts": TINY.replace(normalize_routing_weights=False, num_shared_experts=2),
    "no shared expert": TINY.replace(num_shared_experts=0),
    "dense": TINY.replace(num_dense_layers=3),
    "uneven widths": TINY.replace(num_heads=3, kv_lora_rank=20, qk_nope_head_dim=12, v_head_dim=10, q_lora_rank=22),
}


@functools.cache
def model_of(config: K2Config, dtype: torch.dtype = torch.float32) -> K2Model:
    model = scatter(K2Model(config, seed=0)).to(dtype)
    model.compute_dtype = dtype
    return model


@functools.cache
def served_of(config: K2Config, dtype: torch.dtype = torch.float32) -> ServedModel:
    return ServedModel(model_of(config, dtype))


@functools.cache
def tokens_of(seed: int, count: int) -> list[int]:
    return torch.randint(0, TINY.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class Reader:
    """One answer's way through the model: its tokens are known, its logits are recorded."""

    def __init__(
        self, tokens: list[int], num_prompt: int, slots: Tensor, *, start: int = 0, chunk: int = CHUNK
    ) -> None:
        self.tokens, self.num_prompt, self.chunk = tokens, num_prompt, chunk
        self.slots_S = torch.zeros(-(-len(tokens) // SPAN_TOKENS) * SPAN_TOKENS, dtype=torch.int64)
        self.slots_S[: len(tokens)] = slots
        self.num_in_place = len(slots) if torch.equal(slots, slots[0] + torch.arange(len(slots))) else 0
        self.num_computed = start
        self.logits: dict[int, Tensor] = {}
        """By position."""

    @property
    def is_done(self) -> bool:
        return self.num_computed == len(self.tokens)

    def next(self) -> DecodeRow | PromptPiece:
        start = self.num_computed
        if start >= self.num_prompt:
            return DecodeRow(
                token=self.tokens[start], position=start, slots_S=self.slots_S, num_in_place=self.num_in_place
            )
        stop = min((start // self.chunk + 1) * self.chunk, self.num_prompt)
        return PromptPiece(
            tokens=self.tokens[start:stop],
            start=start,
            slots_S=self.slots_S,
            num_in_place=self.num_in_place,
            wants_logits=True,
        )


class Cache:
    """A paged cache whose rows are given out in no order, and hold what earlier answers left."""

    def __init__(self, served: ServedModel, num_rows: int = 2048) -> None:
        self.served = served
        self.latents = PagedLatents(served.config, num_rows, served.dtype, served.device)
        generator = torch.Generator().manual_seed(7)
        self.latents.rows_LCW[:, BLOCK:].normal_(0.0, 100.0, generator=generator)
        self._rows = (torch.randperm(num_rows - BLOCK, generator=generator) + BLOCK).tolist()

    def slots(self, count: int) -> Tensor:
        return torch.tensor([self._rows.pop() for _ in range(count)], dtype=torch.int64)

    def give_back(self, slots: Tensor) -> None:
        self._rows += slots.tolist()

    def step(self, readers: Sequence[Reader]) -> None:
        """Advance all of them, in one step."""
        decode: list[tuple[Reader, DecodeRow]] = []
        pieces: list[tuple[Reader, PromptPiece]] = []
        for reader in readers:
            work = reader.next()
            if isinstance(work, DecodeRow):
                decode.append((reader, work))
            else:
                pieces.append((reader, work))
        batch = StepBatch.of(
            [row for _, row in decode],
            [piece for _, piece in pieces],
            dtype=self.served.dtype,
            device=self.served.device,
        )
        logits = self.served.step(batch, self.latents)
        assert logits.shape == (len(readers), self.served.config.vocab_size)
        assert logits.dtype == torch.float32
        for (reader, work), row in zip([*decode, *pieces], logits, strict=True):
            reader.num_computed += 1 if isinstance(work, DecodeRow) else len(work.tokens)
            reader.logits[reader.num_computed - 1] = row

    def run(self, reader: Reader) -> Reader:
        while not reader.is_done:
            self.step([reader])
        return reader


def assert_same_bits(found: Reader, expected: Reader) -> None:
    assert found.logits
    for position, row in found.logits.items():
        assert torch.equal(row, expected.logits[position]), f"logits at position {position}"


# ---- parity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_reading_and_decoding_give_the_models_own_logits(name: str) -> None:
    config = CONFIGS[name]
    tokens = tokens_of(1, SPAN_TOKENS + 22)
    cache = Cache(served_of(config))
    # The prompt ends 10 tokens before a span of keys is full: decoding crosses into the next.
    reader = cache.run(Reader(tokens, SPAN_TOKENS - 10, cache.slots(len(tokens))))
    with torch.no_grad():
        expected_TV = model_of(config)(torch.tensor([tokens]))[0]
    assert len(reader.logits) == -(-(SPAN_TOKENS - 10) // CHUNK) + 32
    for position, row in reader.logits.items():
        torch.testing.assert_close(row, expected_TV[position], rtol=0, atol=1e-4)


@given(cuts=st.sets(st.integers(1, 149), max_size=12), num_decoded=st.integers(0, 5))
@settings(max_examples=40)
def test_a_prompt_may_be_read_in_any_pieces(cuts: set[int], num_decoded: int) -> None:
    tokens, num_prompt = tokens_of(2, 150), 150 - num_decoded
    served = served_of(TINY)
    cache, slots_S = Cache(served), torch.zeros(4 * SPAN_TOKENS, dtype=torch.int64)
    slots_S[:150] = cache.slots(150)
    places = [0, *sorted(cut for cut in cuts if cut < num_prompt), num_prompt]
    found: dict[int, Tensor] = {}
    for start, stop in itertools.pairwise(places):
        piece = PromptPiece(tokens=tokens[start:stop], start=start, slots_S=slots_S, wants_logits=True)
        batch = StepBatch.of([], [piece], dtype=served.dtype, device=served.device)
        found[stop - 1] = served.step(batch, cache.latents)[0]
    for position in range(num_prompt, 150):
        row = DecodeRow(token=tokens[position], position=position, slots_S=slots_S)
        batch = StepBatch.of([row], [], dtype=served.dtype, device=served.device)
        found[position] = served.step(batch, cache.latents)[0]
    with torch.no_grad():
        expected_TV = model_of(TINY)(torch.tensor([tokens]))[0]
    for position, row in found.items():
        torch.testing.assert_close(row, expected_TV[position], rtol=0, atol=1e-4)


def test_bfloat16_stays_near_float32() -> None:
    # Dense layers only: a rounding may flip the choice of an expert, which is no error.
    config = CONFIGS["dense"]
    tokens = tokens_of(1, 60)
    cache = Cache(served_of(config, torch.bfloat16))
    reader = cache.run(Reader(tokens, 50, cache.slots(60)))
    with torch.no_grad():
        expected_TV = model_of(config)(torch.tensor([tokens]))[0]
    for position, row in reader.logits.items():
        # 2⁻⁹ in each of about thirty operations in a row.
        assert float((row - expected_TV[position]).norm() / expected_TV[position].norm()) < 30 * 2**-9


def test_a_step_that_wants_no_logits_still_stores_its_latents() -> None:
    served, tokens = served_of(TINY), tokens_of(3, 40)
    cache = Cache(served)
    reader = Reader(tokens, 40, cache.slots(40))
    piece = PromptPiece(tokens=tokens[:CHUNK], start=0, slots_S=reader.slots_S, wants_logits=False)
    batch = StepBatch.of([], [piece], dtype=served.dtype, device=served.device)
    assert served.step(batch, cache.latents).shape == (0, TINY.vocab_size)
    reader.num_computed = CHUNK
    other = Cache(served)
    assert_same_bits(cache.run(reader), other.run(Reader(tokens, 40, other.slots(40))))


def test_a_step_writes_the_rows_of_its_own_tokens_and_no_others() -> None:
    cache = Cache(served_of(TINY))
    readers = [Reader(tokens_of(i, 50), 40, cache.slots(50)) for i in range(3)]
    cache.run(readers[0])
    before = cache.latents.rows_LCW.clone()
    cache.step(readers[1:])
    written = torch.cat([reader.slots_S[:CHUNK] for reader in readers[1:]])
    changed = (cache.latents.rows_LCW != before).any(-1).any(0)
    assert sorted(changed.nonzero().flatten().tolist()) == sorted(written.tolist())
    assert not cache.latents.rows_LCW[:, 0].any()


# ---- invariance -----------------------------------------------------------------------------------------------

# Prompts within a piece, at its edges and over several; answers that cross from one span of keys to the next.
ANSWERS = [(1, 3), (2, 2), (7, 6), (31, 4), (32, 4), (33, 4), (118, 12), (128, 3), (150, 4), (3, 3), (125, 6)]


def reader_of(index: int, cache: Cache) -> Reader:
    num_prompt, num_decoded = ANSWERS[index]
    num_tokens = num_prompt + num_decoded
    return Reader(tokens_of(index, num_tokens), num_prompt, cache.slots(num_tokens))


@functools.cache
def alone(index: int, dtype: torch.dtype) -> Reader:
    cache = Cache(served_of(TINY, dtype))
    return cache.run(reader_of(index, cache))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(data=st.data())
@settings(max_examples=12)
def test_an_answers_logits_are_the_same_bits_in_any_company(dtype: torch.dtype, data: st.DataObject) -> None:
    """Alone, beside others, in another order, beside pieces of prompts: a row depends on its own answer alone."""
    chosen = data.draw(st.lists(st.integers(0, len(ANSWERS) - 1), min_size=2, max_size=8), label="answers")
    order = data.draw(st.randoms(use_true_random=False), label="order")
    cache = Cache(served_of(TINY, dtype))
    readers = [reader_of(index, cache) for index in chosen]
    while under_way := [reader for reader in readers if not reader.is_done]:
        count = order.randint(max(1, len(under_way) - 3), len(under_way))
        cache.step(order.sample(under_way, count))
    for index, reader in zip(chosen, readers, strict=True):
        assert_same_bits(reader, alone(index, dtype))


def test_the_weights_are_its_own() -> None:
    """Training the model that it was made from changes nothing, and the model stays in the mode it was in."""
    model = scatter(K2Model(TINY, seed=0)).train()
    served = ServedModel(model)

    def logits() -> list[Tensor]:
        cache = Cache(served)
        return list(cache.run(Reader(tokens_of(1, 20), 15, cache.slots(20))).logits.values())

    before = logits()
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            value.zero_()
    assert all(torch.equal(first, second) for first, second in zip(before, logits(), strict=True))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_prompt", [9, 32, 33, 75, 150])
def test_a_prefix_found_at_any_block_gives_the_same_bits_as_reading_it(num_prompt: int, dtype: torch.dtype) -> None:
    cache = Cache(served_of(TINY, dtype))
    tokens = tokens_of(num_prompt, num_prompt + 3)
    whole = cache.run(Reader(tokens, num_prompt, cache.slots(len(tokens))))
    for found in range(BLOCK, num_prompt, BLOCK):
        slots = torch.cat([whole.slots_S[:found], cache.slots(len(tokens) - found)])
        rest = cache.run(Reader(tokens, num_prompt, slots, start=found))
        assert_same_bits(rest, whole)
        latents = cache.latents.rows_LCW
        assert torch.equal(latents[:, slots], latents[:, whole.slots_S[: len(tokens)]])
        cache.give_back(slots[found:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_company_changes_nothing_with_two_threads_either(threads: int, dtype: torch.dtype) -> None:
    """Few steps, since on a busy machine each waits for both threads; last, since the module keeps its threads."""
    assert torch.get_num_threads() == threads
    cache, company = Cache(served_of(TINY, dtype)), Cache(served_of(TINY, dtype))
    indices = (1, 2, 4, 5)
    together = [reader_of(index, company) for index in indices]
    while under_way := [reader for reader in together if not reader.is_done]:
        company.step(under_way)
    for index, reader in zip(indices, together, strict=True):
        assert_same_bits(reader, cache.run(reader_of(index, cache)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_side_by_side_are_read_in_place_to_the_same_bits(dtype: torch.dtype) -> None:
    """In place while the rows go on for whole spans, then copied, in one answer."""
    served, tokens = served_of(TINY, dtype), tokens_of(1, SPAN_TOKENS + 22)
    cache = Cache(served)
    scattered = cache.run(Reader(tokens, 100, cache.slots(len(tokens))))
    together = Reader(tokens, 100, torch.arange(700, 700 + len(tokens)))
    assert together.num_in_place == len(tokens)
    cache = Cache(served)
    assert_same_bits(cache.run(together), scattered)
