"""The cache against a model that keeps nothing but a table of prefixes and a clock."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from chogori.engine.prefix_cache import Node, PrefixCache, num_blocks_for, slots_of

BLOCK = 2
NUM_BLOCKS = 5
"""Usable ones; few, so that eviction is frequent."""

Prefix = tuple[int, ...]
# Two letters and short prompts, so that prompts often share a beginning.
prompts = st.lists(st.integers(0, 1), max_size=4 * BLOCK).map(tuple)


@dataclass(eq=False)
class Known:
    """A prefix in the table."""

    block: int
    exact: bool
    holders: int
    used_at: int = 0
    """When its last holder left."""


@dataclass(eq=False)
class Holder:
    """What an answer would hold."""

    tokens: Prefix
    path: list[Node]
    own: list[int]
    """Blocks that were taken and not inserted, in order."""


class CacheMachine(RuleBasedStateMachine):
    """Answers come, fill blocks and go, in any order."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(NUM_BLOCKS + 1, BLOCK)
        self.table: dict[Prefix, Known] = {}
        self.live: list[Holder] = []
        self.clock = 0

    def idle(self) -> list[Prefix]:
        return [prefix for prefix, known in self.table.items() if not known.holders]

    def evict_until_free(self, count: int) -> None:
        """The model's eviction: of the idle prefixes that no longer one contains, that which was left first."""
        while self.num_free() < count:
            leaves = [p for p in self.idle() if not any(q != p and q[: len(p)] == p for q in self.table)]
            del self.table[min(leaves, key=lambda prefix: self.table[prefix].used_at)]

    def num_free(self) -> int:
        return NUM_BLOCKS - len(self.table) - sum(len(holder.own) for holder in self.live)

    @rule(target=holders, tokens=prompts, more=st.integers(0, 3), exact_only=st.booleans())
    def begin(self, tokens: Prefix, more: int, exact_only: bool) -> object:
        """An answer that stays for a while."""
        holder = self.enter(tokens, more, exact_only)
        return multiple() if holder is None else holder

    @rule(tokens=prompts, exact=st.booleans())
    def come_and_go(self, tokens: Prefix, exact: bool) -> None:
        """An answer from beginning to end."""
        holder = self.enter(tokens, 0, False)
        if holder is not None:
            while len(holder.path) < len(tokens) // BLOCK:
                self.fill(holder, exact, (0, 0))
            self.leave(holder)

    def enter(self, tokens: Prefix, more: int, exact_only: bool) -> Holder | None:
        """Find the prefix of a prompt, hold it and take blocks for the rest; None where there is no room."""
        path = self.cache.match(tokens, exact_only=exact_only)
        longest = 0
        while (prefix := tokens[: (longest + 1) * BLOCK]) in self.table and len(prefix) == (longest + 1) * BLOCK:
            if exact_only and not self.table[prefix].exact:
                break
            longest += 1
        expected = [tokens[: (i + 1) * BLOCK] for i in range(longest)]
        assert [node.block for node in path] == [self.table[prefix].block for prefix in expected]
        self.cache.hold(path)
        for prefix in expected:
            self.table[prefix].holders += 1
        wanted = num_blocks_for(len(tokens), BLOCK) + more - longest
        if wanted > self.cache.num_available:
            self.cache.release(path)
            self.leave_prefixes(expected)
            return None
        own = self.cache.take(wanted)
        self.evict_until_free(wanted)
        holder = Holder(tokens, path, own)
        self.live.append(holder)
        return holder

    @rule(holder=holders, exact=st.booleans(), fallback=st.tuples(st.integers(0, 1), st.integers(0, 1)))
    def fill(self, holder: Holder, exact: bool, fallback: Prefix) -> None:
        """An answer's next block is full: with its prompt or, behind that, with anything."""
        if holder not in self.live or not holder.own:
            return
        start = len(holder.path) * BLOCK
        block_tokens = holder.tokens[start : start + BLOCK]
        if len(block_tokens) < BLOCK:
            block_tokens = (*block_tokens, *fallback)[:BLOCK]
            holder.tokens = holder.tokens[:start] + block_tokens
        prefix = holder.tokens[: start + BLOCK]
        parent = holder.path[-1] if holder.path else None
        node = self.cache.insert(parent, block_tokens, holder.own[0], exact=exact)
        if prefix in self.table:
            assert node is None
            return
        assert node is not None
        exact = exact and (not start or self.table[prefix[:start]].exact)
        assert node.exact == exact
        self.table[prefix] = Known(block=holder.own.pop(0), exact=exact, holders=1)
        holder.path.append(node)

    @rule(holder=holders)
    def supersede(self, holder: Holder) -> None:
        """A block that an answer has read replaces one that was produced and that it alone holds."""
        if holder not in self.live or not holder.own:
            return
        for i, node in enumerate(holder.path):
            prefix = holder.tokens[: (i + 1) * BLOCK]
            if node.exact or node.holders > 1:
                continue
            self.cache.supersede(node, holder.own[0])
            known = self.table[prefix]
            known.block = holder.own.pop(0)
            known.exact = i == 0 or self.table[prefix[: i * BLOCK]].exact
            return

    @rule(holder=consumes(holders))
    def leave(self, holder: Holder) -> None:
        """An answer ends."""
        self.live.remove(holder)
        self.cache.release(holder.path)
        self.cache.give_back(holder.own)
        self.leave_prefixes([holder.tokens[: (i + 1) * BLOCK] for i in range(len(holder.path))])

    def leave_prefixes(self, prefixes: list[Prefix]) -> None:
        for prefix in prefixes:
            known = self.table[prefix]
            known.holders -= 1
            if not known.holders:
                known.used_at = self.clock
        self.clock += 1

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        for prefix in self.idle():
            del self.table[prefix]

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        cached: list[int] = []
        nodes = list(self.cache._root.children.values())
        while nodes:
            node = nodes.pop()
            cached.append(node.block)
            nodes += node.children.values()
        taken = [block for holder in self.live for block in holder.own]
        assert sorted([*self.cache._free, *cached, *taken]) == list(range(1, NUM_BLOCKS + 1))

    @invariant()
    def counts_are_those_of_the_table(self) -> None:
        assert self.cache.num_cached == len(self.idle())
        assert self.cache.num_available == self.num_free() + len(self.idle())

    @invariant()
    def every_prefix_is_found(self) -> None:
        for prefix, known in self.table.items():
            path = self.cache.match(prefix)
            assert len(path) * BLOCK == len(prefix)
            assert (path[-1].block, path[-1].exact, path[-1].holders) == (known.block, known.exact, known.holders)


TestPrefixCache = CacheMachine.TestCase
TestPrefixCache.settings = settings(max_examples=200, stateful_step_count=50)


def fill(cache: PrefixCache, *blocks: tuple[int, ...]) -> list[Node]:
    """Cache a prompt of these blocks, and leave it idle."""
    path = cache.match([token for block in blocks for token in block])
    cache.hold(path)
    for tokens in blocks[len(path) :]:
        node = cache.insert(path[-1] if path else None, tokens, cache.take(1)[0], exact=True)
        assert node is not None
        path.append(node)
    cache.release(path)
    return path


def test_a_beginning_used_lately_outlives_an_older_prompt_when_its_own_end_is_evicted() -> None:
    cache = PrefixCache(4, BLOCK)
    fill(cache, (1, 1), (2, 2))
    fill(cache, (3, 3))
    fill(cache, (1, 1))
    assert len(cache.match((3, 3))) == 1
    cache.take(1)
    assert [node.tokens for node in cache.match((1, 1, 2, 2))] == [(1, 1)]
    cache.take(1)
    assert not cache.match((3, 3))
    assert cache.match((1, 1))


def test_only_whole_blocks_are_matched() -> None:
    cache = PrefixCache(4, 4)
    fill(cache, (1, 2, 3, 4))
    assert not cache.match([1, 2, 3])
    assert len(cache.match([1, 2, 3, 4, 5, 6, 7])) == 1
    assert not cache.match([9, 1, 2, 3, 4])


def test_blocks_cover_their_tokens_in_order() -> None:
    assert [num_blocks_for(n, 4) for n in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]
    assert slots_of([3, 1], 4) == [12, 13, 14, 15, 4, 5, 6, 7]
