"""Everything that talks: the tokenizer and, later, messages, K2's wire format and the Completer protocol.

Owns the vocabulary and the special tokens; never loads torch. Read `tokenizer`, then `special_tokens`.
"""

from typing import TYPE_CHECKING

from chogori._lazy import lazy_exports

if TYPE_CHECKING:
    from chogori.chat.language_samples import SAMPLES
    from chogori.chat.tokenizer import Tokenizer, bytes_per_token

__all__ = ["SAMPLES", "Tokenizer", "bytes_per_token"]

__getattr__, __dir__ = lazy_exports(
    __name__, {"SAMPLES": "language_samples", "Tokenizer": "tokenizer", "bytes_per_token": "tokenizer"}
)
