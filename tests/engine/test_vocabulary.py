"""Which ids may be produced where, and grammars that two threads use at once."""

import json
import random
import threading
from typing import Any

import llguidance
import numpy as np
import pytest

from chogori.engine import vocabulary as vocabulary_module
from chogori.engine.vocabulary import Mask, Vocabulary
from chogori.errors import RequestError
from tests.engine.random_schemas import random_tool_schema


def matcher_after(vocabulary: Vocabulary, schema: dict[str, Any], text: bytes) -> llguidance.LLMatcher:
    matcher = vocabulary.matcher_of_schema(schema, field="schema")
    assert matcher.consume_tokens([vocabulary.byte_ids[value] for value in text])
    return matcher


def test_free_text_is_every_token_of_text_and_the_ends_and_nothing_else(vocabulary: Vocabulary) -> None:
    tokenizer = vocabulary.tokenizer
    special = set(tokenizer.special_tokens.values())
    for token in range(vocabulary.num_rows):
        is_text = token < tokenizer.vocab_size and token not in special
        assert vocabulary.text_mask[token] == (is_text or token in vocabulary.end_ids)


def test_each_byte_has_its_id(vocabulary: Vocabulary) -> None:
    assert b"".join(vocabulary.tokenizer.decode_bytes([token]) for token in vocabulary.byte_ids) == bytes(range(256))


def test_a_mask_of_named_ids_has_those_only(vocabulary: Vocabulary) -> None:
    assert set(np.flatnonzero(vocabulary.only(3, vocabulary.call_end))) == {3, vocabulary.call_end}


@pytest.mark.parametrize("text", [b"", b'{"a": ', b'{"a": "x', b'{"a": "\xe6\x97', b'{"a": -1', b'{"a": 1}'])
def test_a_mask_is_what_the_grammar_takes_token_by_token(vocabulary: Vocabulary, text: bytes) -> None:
    """Asked of a copy for every id: no special token, no row without a token, no end token."""
    schema = {"type": "object", "properties": {"a": {"type": ["string", "integer"]}}, "additionalProperties": False}
    matcher = matcher_after(vocabulary, schema, text)
    mask = vocabulary.allowed_by(matcher)
    for token in range(len(vocabulary.tokenizer.ranks)):
        assert mask[token] == (matcher.deep_copy().validate_tokens([token]) == 1), token
    assert not mask[len(vocabulary.tokenizer.ranks) :].any()


def test_a_choice_is_one_of_its_texts_however_they_are_spelt(vocabulary: Vocabulary) -> None:
    texts = ("functions.a:0", "functions.ab:0", 'functions.quo"te\\:0', "functions.日本:0", "functions.a:0:0", "")
    matcher = vocabulary.matcher_of_choice(texts)
    for text in texts:
        ids = vocabulary.tokenizer.encode(text)
        copy = matcher.deep_copy()
        assert copy.consume_tokens(ids)
        assert copy.is_accepting()
    for text in ("functions.b", "functions.ab:1", "functions.a:0 "):
        ids = vocabulary.tokenizer.encode(text)
        assert matcher.validate_tokens(ids) < len(ids)


def test_white_space_is_at_most_one_space_behind_commas_and_colons(vocabulary: Vocabulary) -> None:
    """A model that is lost could else write nothing else until its tokens are used up."""
    matcher = vocabulary.matcher_of_schema({"type": "object"}, field="schema")
    for text, is_taken in [(b'{"a": 1, "b":2}', True), (b'{"a":  1}', False), (b'{ "a":1}', False), (b"{}\n", False)]:
        ids = [vocabulary.byte_ids[value] for value in text]
        assert (matcher.validate_tokens(ids) == len(ids)) == is_taken


def test_formats_that_nobody_defined_are_ignored_where_they_are_formats(vocabulary: Vocabulary) -> None:
    """Also several of them, and not where a constant or a name only looks like one."""
    schema = {
        "type": "object",
        "properties": {
            "format": {"const": {"format": "nonsense"}},
            "a": {"type": "string", "format": "nonsense"},
            "b": {"type": "array", "items": {"type": "string", "format": "other-nonsense"}},
        },
        "required": ["format", "a", "b"],
        "additionalProperties": False,
    }
    text = json.dumps({"format": {"format": "nonsense"}, "a": "x", "b": ["y"]})
    assert matcher_after(vocabulary, schema, text.encode()).is_accepting()
    ids = [vocabulary.byte_ids[value] for value in b'{"format": {}']
    assert vocabulary.matcher_of_schema(schema, field="schema").validate_tokens(ids) < len(ids)


def test_a_schema_that_is_none_is_refused_by_its_field(vocabulary: Vocabulary) -> None:
    for _ in range(2):  # a failure is not kept
        with pytest.raises(RequestError, match=r"^tools\[3\] cannot be enforced: Invalid type: strong$") as caught:
            vocabulary.matcher_of_schema({"type": "strong"}, field="tools[3]")
        assert caught.value.field == "tools[3]"


def test_what_one_matcher_reads_reaches_no_other_of_its_schema(vocabulary: Vocabulary) -> None:
    schema = {"type": "object", "properties": {"k": {"type": "null"}}}
    before = vocabulary.allowed_by(vocabulary.matcher_of_schema(schema, field="schema"))
    matcher_after(vocabulary, schema, b'{"k"')
    assert np.array_equal(vocabulary.allowed_by(vocabulary.matcher_of_schema(schema, field="schema")), before)


def test_only_so_many_grammars_are_kept(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_module, "MAX_GRAMMARS", 3)
    fresh = Vocabulary(vocabulary.tokenizer, vocabulary.num_rows)
    for i in range(10):
        assert matcher_after(fresh, {"const": i}, str(i).encode()).is_accepting()
        assert matcher_after(fresh, {"const": 0}, b"0").is_accepting()
    assert len(fresh._matchers) == 3


class Interrupted:
    """A matcher during whose computation of a mask another thread computes one too."""

    def __init__(self, matcher: llguidance.LLMatcher, meanwhile: Any) -> None:
        self._matcher, self._meanwhile = matcher, meanwhile

    def unsafe_compute_mask_ptr(self, pointer: int, num_bytes: int) -> None:
        self._matcher.unsafe_compute_mask_ptr(pointer, num_bytes)
        other = threading.Thread(target=self._meanwhile)
        other.start()
        other.join()


def test_masks_of_two_threads_do_not_mix(vocabulary: Vocabulary) -> None:
    """Requests are compiled in their caller's thread while the engine's chooses tokens."""
    number = vocabulary.matcher_of_schema({"type": "integer"}, field="schema")
    text = vocabulary.matcher_of_schema({"type": "string"}, field="schema")
    expected, others = vocabulary.allowed_by(number), list[Mask]()
    interrupted: Any = Interrupted(number, lambda: others.append(vocabulary.allowed_by(text)))
    assert np.array_equal(vocabulary.allowed_by(interrupted), expected)
    assert not np.array_equal(others[0], expected)


def test_grammars_are_made_and_used_by_many_threads(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """With so few kept that each thread throws out what another is about to copy."""
    monkeypatch.setattr(vocabulary_module, "MAX_GRAMMARS", 2)
    fresh = Vocabulary(vocabulary.tokenizer, vocabulary.num_rows)
    schemas = [random_tool_schema(random.Random(seed)) for seed in range(6)]
    expected = [vocabulary.allowed_by(vocabulary.matcher_of_schema(schema, field="schema")) for schema in schemas]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in random.Random(seed).choices(range(len(schemas)), k=40):
                assert np.array_equal(fresh.allowed_by(fresh.matcher_of_schema(schemas[i], field="s")), expected[i])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
