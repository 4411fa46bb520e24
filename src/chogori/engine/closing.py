"""How to end a JSON text that is under way, in few tokens: what makes a call whole that a token limit would cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import llguidance
import numpy as np

from chogori.engine.vocabulary import Vocabulary

# In a string its end is what is wanted, outside of one the end of what holds it, else what must follow there, else the
# shortest value.
_IN_STRING = b'"' + bytes(range(ord("a"), ord("z") + 1)) + b"0123456789" + bytes(range(ord("A"), ord("Z") + 1))
_OUTSIDE = b'}],:"0123456789tnf{[-'
_NUM_ENDS = {True: 1, False: 4}
"""By whether it is inside a string: how many of these are ends."""
_OTHERS = bytes(value for value in range(256) if value not in b"\\") + b"\\"


NUM_WALKS = 4
"""Random searches for an ending, where two fixed orders of preference find none."""
WALK_TOKENS = 2048
"""Their longest. A pattern such as x or .@. asks for one letter of about 95, so a walk needs about 95 tokens for it."""


class JsonStrings:
    """Whether a JSON text is inside a string, followed byte by byte."""

    __slots__ = ("_escaped", "inside")

    def __init__(self, *, inside: bool = False, escaped: bool = False) -> None:
        self.inside = inside
        self._escaped = escaped

    def copy(self) -> JsonStrings:
        """An independent follower at the same place."""
        return JsonStrings(inside=self.inside, escaped=self._escaped)

    def feed(self, data: bytes) -> None:
        """Read on."""
        for value in data:
            if self._escaped:
                self._escaped = False
            elif value == 0x22:
                self.inside = not self.inside
            elif value == 0x5C and self.inside:
                self._escaped = True


class Closer:
    """Finds endings in one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        byte_ids = vocabulary.byte_ids
        self._closing = [byte_ids[value] for value in b'"}]']
        self._orders = {
            (inside, turned): np.array([byte_ids[value] for value in _order(inside=inside, turned=turned)])
            for inside in (False, True)
            for turned in (False, True)
        }

    def ending(
        self, matcher: llguidance.LLMatcher, strings: JsonStrings, limit: int, *, known: Sequence[int] = ()
    ) -> list[int] | None:
        """At most `limit` tokens that complete the text of `matcher`, or None where none were found.

        Most tokens leave the ending `known` one token earlier as it was, or put one closing byte before it; that is
        tried first, at a tenth of the cost of a search. Else the text is ended greedily, by what is forced and else by
        single bytes; a second attempt prefers other bytes, since a pattern such as a*b never ends under the first one;
        further ones are random walks, the same in every run. `matcher` and `strings` do not change.
        """
        for tokens in self._variations(known):
            if len(tokens) <= limit and self._ends(matcher, tokens):
                return tokens
        for turned in (False, True):
            tokens = self._attempt(matcher.deep_copy(), strings.copy(), limit, turned=turned)
            if tokens is not None:
                return tokens
        for seed in range(NUM_WALKS):
            walk = np.random.default_rng(seed)
            tokens = self._attempt(matcher.deep_copy(), strings.copy(), min(limit, WALK_TOKENS), walk=walk)
            if tokens is not None:
                return tokens
        return None

    def _variations(self, known: Sequence[int]) -> Iterator[list[int]]:
        if known:
            yield [*known[1:]]
            yield [*known]
            for closing in self._closing:
                yield [closing, *known]

    def _ends(self, matcher: llguidance.LLMatcher, tokens: list[int]) -> bool:
        if matcher.validate_tokens(tokens) < len(tokens):
            return False
        after = matcher.deep_copy()
        return after.consume_tokens(tokens) and after.is_accepting()

    def _attempt(
        self,
        matcher: llguidance.LLMatcher,
        strings: JsonStrings,
        limit: int,
        *,
        turned: bool = False,
        walk: np.random.Generator | None = None,
    ) -> list[int] | None:
        tokens: list[int] = []
        while not matcher.is_accepting():
            step = matcher.compute_ff_tokens()
            if not step:
                mask = self._vocabulary.allowed_by(matcher)
                order = self._orders[strings.inside, turned]
                allowed = order[mask[order]]
                if not allowed.size:
                    return None
                chosen = 0
                if walk is not None and not np.isin(allowed[0], order[: _NUM_ENDS[strings.inside]]):
                    chosen = int(walk.integers(allowed.size))
                step = [int(allowed[chosen])]
            tokens += step
            if len(tokens) > limit or not matcher.consume_tokens(step):
                return None
            strings.feed(self._vocabulary.tokenizer.decode_bytes(step))
        return tokens


def _order(*, inside: bool, turned: bool) -> bytes:
    preferred = _IN_STRING if inside else _OUTSIDE
    if turned:
        preferred = preferred[:1] + preferred[:0:-1] if inside else preferred[:4] + preferred[:3:-1]
    return preferred + bytes(value for value in _OTHERS if value not in preferred)
