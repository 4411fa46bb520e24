"""What of a tokenizer the engine needs: which ids may be produced where, and grammars over them. Loads no torch."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from chogori.chat.bpe_ranks import K2_SPLIT_PATTERN
from chogori.chat.messages import JSON
from chogori.chat.tokenizer import Tokenizer
from chogori.engine.enforced_schema import enforced_schema, without_format
from chogori.engine.schema_narrowing import narrowed
from chogori.errors import RequestError

Mask = NDArray[np.bool_]
"""Which ids may come next, one truth value for each row of the model's head."""

MAX_GRAMMARS = 256
"""Compiled schemas that are kept."""

# As models write JSON: at most one space behind a comma or colon. Unbounded white space would let a model that is lost
# write nothing else until its tokens are used up.
_JSON_STYLE: Mapping[str, Any] = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


class Vocabulary:
    """The ids of one tokenizer. `num_rows`: rows of the model's head; those beyond the tokenizer are never allowed."""

    def __init__(self, tokenizer: Tokenizer, num_rows: int) -> None:
        self.tokenizer = tokenizer
        self.num_rows = num_rows
        ids = tokenizer.id_of
        self.section_begin, self.section_end = ids("<|tool_calls_section_begin|>"), ids("<|tool_calls_section_end|>")
        self.call_begin, self.call_end = ids("<|tool_call_begin|>"), ids("<|tool_call_end|>")
        self.argument_begin = ids("<|tool_call_argument_begin|>")
        self.im_end = ids("<|im_end|>")
        self.end_ids = frozenset({self.im_end, tokenizer.eos_id})
        num_base = len(tokenizer.ranks)
        self.text_mask = np.zeros(num_rows, dtype=np.bool_)
        self.text_mask[:num_base] = True
        self.text_mask[list(self.end_ids)] = True
        self.byte_ids = [tokenizer.ranks[bytes([value])] for value in range(256)]
        self._guide = llguidance.LLTokenizer.from_tiktoken(  # pyright: ignore[reportAttributeAccessIssue]
            encoder=dict(tokenizer.ranks),
            special_tokens=dict(tokenizer.special_tokens),
            pattern=K2_SPLIT_PATTERN,
            eos_token=tokenizer.eos_id,
            n_vocab=tokenizer.vocab_size,
        )
        self._eos_id = tokenizer.eos_id
        self._num_words = -(-tokenizer.vocab_size // 32)
        # Requests are compiled in their caller's thread, calls begin in the engine's.
        self._lock = threading.Lock()
        self._matchers: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def only(self, *ids: int) -> Mask:
        """A mask that allows `ids` and nothing else."""
        mask = np.zeros(self.num_rows, dtype=np.bool_)
        mask[list(ids)] = True
        return mask

    def allowed_by(self, matcher: llguidance.LLMatcher) -> Mask:
        """The ids that continue a grammar; its end is not among them (`matcher.is_accepting()` tells)."""
        words = np.zeros(self._num_words, dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        mask = np.zeros(self.num_rows, dtype=np.bool_)
        size = self.tokenizer.vocab_size
        mask[:size] = bits[:size]
        mask[self._eos_id] = False
        return mask

    def matcher_of_schema(self, schema: Mapping[str, JSON], *, field: str) -> llguidance.LLMatcher:
        """A matcher for JSON that satisfies `schema`, at its beginning.

        Formats that nobody defined are ignored, as JSON schema has it. Raises RequestError, naming `field`, for a
        schema that is not one or uses a keyword that cannot be enforced.
        """
        try:
            return self._kept("json:" + json.dumps(schema), lambda: self._compile_schema(schema))
        except ValueError as error:
            raise RequestError(f"{field} cannot be enforced: {error}", field=field) from error

    def matcher_of_choice(self, texts: tuple[str, ...]) -> llguidance.LLMatcher:
        """A matcher for exactly one of `texts`, at its beginning."""
        grammar = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        return self._kept(
            "choice:" + json.dumps(texts), lambda: self._compile(llguidance.LLMatcher.grammar_from_lark(grammar))
        )

    def _compile_schema(self, asked: Mapping[str, JSON]) -> llguidance.LLMatcher:
        schema = enforced_schema(narrowed(asked))
        while True:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=dict(_JSON_STYLE))  # pyright: ignore[reportArgumentType]
            try:
                return self._compile(grammar)
            except ValueError as error:
                unknown = str(error).removeprefix("Unknown format: ")
                if unknown == str(error):
                    raise
                schema = without_format(schema, unknown)

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self._guide, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error().splitlines()[0])
        return matcher

    def _kept(self, key: str, make: Callable[[], llguidance.LLMatcher]) -> llguidance.LLMatcher:
        """A copy of the matcher of `key`, made when it is not known."""
        with self._lock:
            matcher = self._matchers.get(key)
        if matcher is None:
            matcher = make()
        with self._lock:
            self._matchers[key] = matcher
            self._matchers.move_to_end(key)
            while len(self._matchers) > MAX_GRAMMARS:
                self._matchers.popitem(last=False)
            return matcher.deep_copy()
