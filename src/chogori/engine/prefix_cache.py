"""Blocks of the latent cache: who holds them, and which prefix of which prompt they contain.

A radix tree over whole blocks: a node is a block's tokens behind its parent's, so that a path from the root spells a
prefix. A block is held by the answers that use it; a block that nobody holds stays in the tree until its place is
needed, the least recently used leaf first. Loads no torch.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Node:
    """One cached block in the tree."""

    parent: Node | None
    tokens: tuple[int, ...]
    block: int
    exact: bool
    """Whether reading the prompt again would give the same latents to the last bit: true of prompts that were read,
    not of tokens that were produced, one by one, by products of other shapes."""
    holders: int = 0
    children: dict[tuple[int, ...], Node] = field(default_factory=dict["tuple[int, ...]", "Node"])


class PrefixCache:
    """All blocks but block 0, which is left to padding.

    Args:
        num_blocks: blocks in the cache, block 0 included.
        block_tokens: tokens per block.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.num_blocks = num_blocks - 1
        self._free = list(range(num_blocks - 1, 0, -1))
        self._root = Node(None, (), 0, True)
        # Nodes that nobody holds, by block, least recently used first. Whoever holds a node holds its parents and
        # releases them after it, so that a parent always comes behind its children and the first is always a leaf.
        self._idle: OrderedDict[int, Node] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that can be taken: free ones, and cached ones that nobody holds."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks that hold a prefix which nobody uses at the moment."""
        return len(self._idle)

    def match(self, tokens: Sequence[int], *, exact_only: bool = False) -> list[Node]:
        """The longest path of cached blocks that `tokens` begins with."""
        path: list[Node] = []
        node = self._root
        for start in range(0, len(tokens) - self.block_tokens + 1, self.block_tokens):
            found = node.children.get(tuple(tokens[start : start + self.block_tokens]))
            if found is None or (exact_only and not found.exact):
                break
            path.append(found)
            node = found
        return path

    def hold(self, path: Sequence[Node]) -> None:
        """Keep the blocks of `path` until `release`."""
        for node in path:
            if node.holders == 0:
                del self._idle[node.block]
            node.holders += 1

    def release(self, path: Sequence[Node]) -> None:
        """Undo `hold`, or the holding that `insert` began."""
        for node in reversed(path):
            node.holders -= 1
            if node.holders == 0:
                self._idle[node.block] = node

    def take(self, count: int) -> list[int]:
        """Blocks for new tokens; cached prefixes give way. The caller has checked `num_available`."""
        while len(self._free) < count:
            self._evict()
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: Sequence[int]) -> None:
        """Blocks that were taken and not inserted."""
        self._free.extend(reversed(blocks))

    def insert(self, parent: Node | None, tokens: tuple[int, ...], block: int, *, exact: bool) -> Node | None:
        """Make a full block findable behind `parent` (None for the root). The caller holds it, and the new node.

        Returns None when another block already spells the same prefix: the caller keeps its own to itself.
        """
        parent = parent or self._root
        if tokens in parent.children:
            return None
        node = Node(parent, tokens, block, exact and parent.exact, holders=1)
        parent.children[tokens] = node
        return node

    def supersede(self, node: Node, block: int) -> None:
        """Put a block that was read in the place of a node's, which was produced. The caller alone holds the node."""
        assert node.holders == 1, "others still use the block"
        self._free.append(node.block)
        node.block = block
        node.exact = node.parent is not None and node.parent.exact

    def clear(self) -> None:
        """Forget every prefix that nobody uses."""
        while self._idle:
            self._evict()

    def _evict(self) -> None:
        block, node = self._idle.popitem(last=False)
        assert node.parent is not None, "the root is never evicted"
        assert not node.children, "only leaves are evicted"
        del node.parent.children[node.tokens]
        self._free.append(block)


def num_blocks_for(num_tokens: int, block_tokens: int) -> int:
    """Blocks that hold `num_tokens`."""
    return -(-num_tokens // block_tokens)


def slots_of(blocks: Sequence[int], block_tokens: int) -> list[int]:
    """Rows of the cache that the tokens of `blocks` occupy, in order."""
    return list(itertools.chain.from_iterable(range(b * block_tokens, (b + 1) * block_tokens) for b in blocks))


def num_in_place(blocks: Sequence[int]) -> int:
    """How many blocks from the first on lie side by side."""
    return next((i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1] + 1), len(blocks))
