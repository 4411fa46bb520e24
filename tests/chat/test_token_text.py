"""Text comes in whole characters, and in sum it is what the tokenizer decodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.token_text import TokenText
from chogori.chat.tokenizer import Tokenizer
from chogori.errors import TokenizerError


@given(data=st.data())
def test_any_ids_in_any_pieces_give_the_text_of_all(tokenizer: Tokenizer, data: st.DataObject) -> None:
    # Single bytes above 127 often, so that characters break in every way.
    high_bytes = st.sampled_from([tokenizer.ranks[bytes([byte])] for byte in range(128, 256)])
    runs = data.draw(st.lists(st.lists(high_bytes | st.integers(0, tokenizer.vocab_size - 1), max_size=6), max_size=6))
    text = TokenText(tokenizer)
    told = "".join(text.feed(run) for run in runs) + text.finish()
    assert told == tokenizer.decode([token_id for run in runs for token_id in run])


@given(written=st.text(st.characters(codec="utf-8")))
def test_no_piece_ends_within_a_character(tokenizer: Tokenizer, written: str) -> None:
    text = TokenText(tokenizer)
    pieces = [text.feed([tokenizer.ranks[bytes([byte])]]) for byte in written.encode()]
    assert [piece for piece in pieces if piece] == list(written)
    assert text.finish() == ""


def test_a_finished_text_leaves_nothing_to_the_next(tokenizer: Tokenizer) -> None:
    text = TokenText(tokenizer)
    assert text.feed([tokenizer.ranks[b"\xc3"]]) == ""
    assert text.finish() == "\ufffd"
    assert text.feed(tokenizer.encode("a")) + text.finish() == "a"


def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="outside this vocabulary"):
        TokenText(tokenizer).feed([tokenizer.vocab_size])
