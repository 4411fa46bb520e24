"""Token ids to text as they come: a token may end within a character, text never does."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the tokenizer loads two native libraries
    from chogori.chat.tokenizer import Tokenizer


class TokenText:
    """The text of a growing sequence of ids. In whatever pieces they come, the text is `tokenizer.decode` of all."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Sequence[int]) -> str:
        """The characters that `ids` complete. Raises TokenizerError on an id outside the vocabulary."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole. The next id begins a new text."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
