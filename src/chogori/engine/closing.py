"""How to end a JSON text that is under way, in few tokens: what makes a call whole that a token limit would cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import llguidance
import numpy as np

from chogori.engine.json_place import JsonPlace
from chogori.engine.pattern_examples import pattern_tails
from chogori.engine.vocabulary import Vocabulary

# In a string its end is what is wanted, outside of one the end of what holds it, else what must follow there, else the
# shortest value.
_IN_STRING = b'"' + bytes(range(ord("a"), ord("z") + 1)) + b"0123456789" + bytes(range(ord("A"), ord("Z") + 1))
_OUTSIDE = b'}],:"0123456789tnf{[-'
_NUM_ENDS = {True: 1, False: 4}
"""By whether it is inside a string: how many of these are ends."""
_OTHERS = bytes(value for value in range(256) if value not in b"\\") + b"\\"

Tails: TypeAlias = Sequence[list[int]]
"""Tokens that may end a string, its quote included; shortest first."""
FIRST_TRIES = 8
TRIES_EVERY = 32
"""Bytes behind which a string's tails are tried: the first few, then every so many, since it may have to be long."""
NUM_WALKS = 4
"""Random searches for an ending, where two fixed orders of preference find none."""
WALK_TOKENS = 2048
"""Their longest. A pattern such as x or .@. asks for one letter of about 95, so a walk needs about 95 tokens for it."""


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

    def tails(self, schema: Mapping[str, Any]) -> Tails:
        """What may end the strings that `schema` gives a pattern, for `ending`."""
        byte_ids = self._vocabulary.byte_ids
        return [[byte_ids[value] for value in tail] for tail in pattern_tails(schema)]

    def ending(
        self,
        matcher: llguidance.LLMatcher,
        place: JsonPlace,
        limit: int,
        *,
        known: Sequence[int] = (),
        tails: Tails = (),
    ) -> list[int] | None:
        """At most `limit` tokens that complete the text of `matcher`, or None where none were found.

        Most tokens leave the ending `known` one token earlier as it was, or put one closing byte before it; that is
        tried first, at a tenth of the cost of a search. Else the text is ended greedily, by what is forced, the first
        of `tails` that fits, and else by single bytes; a second attempt prefers other bytes, since a pattern such as
        a*b never ends under the first one; further ones are random walks, the same in every run. `matcher` and
        `place` do not change.
        """
        for tokens in self._variations(known):
            if len(tokens) <= limit and self._ends(matcher, tokens):
                return tokens
        for turned in (False, True):
            tokens = self._attempt(matcher.deep_copy(), place.copy(), limit, tails, turned=turned)
            if tokens is not None:
                return tokens
        for seed in range(NUM_WALKS):
            walk = np.random.default_rng(seed)
            tokens = self._attempt(matcher.deep_copy(), place.copy(), min(limit, WALK_TOKENS), tails, walk=walk)
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
        place: JsonPlace,
        limit: int,
        tails: Tails,
        *,
        turned: bool = False,
        walk: np.random.Generator | None = None,
    ) -> list[int] | None:
        tokens: list[int] = []
        num_bytes = 0
        while not matcher.is_accepting():
            step = matcher.compute_ff_tokens()
            if not step and place.inside:
                step = self._tail(matcher, place, tails, num_bytes)
                num_bytes += 1
            if not step:
                mask = self._vocabulary.allowed_by(matcher)
                order = self._orders[place.inside, turned]
                allowed = order[mask[order]]
                if not allowed.size:
                    return None
                chosen = 0
                if walk is not None and not np.isin(allowed[0], order[: _NUM_ENDS[place.inside]]):
                    chosen = int(walk.integers(allowed.size))
                step = [int(allowed[chosen])]
            tokens += step
            if len(tokens) > limit or not matcher.consume_tokens(step):
                return None
            place.feed(self._vocabulary.tokenizer.decode_bytes(step))
        return tokens

    def _tail(self, matcher: llguidance.LLMatcher, place: JsonPlace, tails: Tails, num_bytes: int) -> list[int]:
        """The first of `tails` that ends the string; empty where none does, or where it is too early to try again."""
        if num_bytes >= FIRST_TRIES and num_bytes % TRIES_EVERY:
            return []
        for tail in tails:
            if matcher.validate_tokens(tail) == len(tail):
                after = place.copy()
                after.feed(self._vocabulary.tokenizer.decode_bytes(tail))
                if not after.inside:  # behind a backslash, a quote ends nothing
                    return tail
        return []


def _order(*, inside: bool, turned: bool) -> bytes:
    preferred = _IN_STRING if inside else _OUTSIDE
    if turned:
        preferred = preferred[:1] + preferred[:0:-1] if inside else preferred[:4] + preferred[:3:-1]
    return preferred + bytes(value for value in _OTHERS if value not in preferred)
