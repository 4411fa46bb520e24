"""The vocabulary of a GGUF file: byte-level BPE as llama.cpp reads it, from plain data. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGUFWriter, TokenType

from chogori.errors import ConfigError

TOKENIZER_MODEL = "gpt2"
"""llama.cpp's name of byte-level BPE."""
SPLIT_RULES = "kimi-k2"
"""llama.cpp's name of K2's split pattern, which it has as code rather than as a regular expression. To that code 々 and
〇 are not Han and combining marks are no letters, so words with them may become more tokens than in K2's own tokenizer,
for the official K2 files as well (benchmarks/llama_cpp_parity.py)."""


@dataclass(frozen=True, kw_only=True)
class GgufVocabulary:
    """A vocabulary as plain data; ids follow from the order, first `base_tokens`, then `special_tokens`."""

    base_tokens: Sequence[str]
    """Tokens of text, one printable character a byte as GPT-2 began it, in order of id."""
    special_tokens: Sequence[str]
    """Markers that no text encodes to, in order of id."""
    merges: Sequence[tuple[str, str]]
    """Pairs of base tokens in order of rank."""
    bos: str
    """Special token that begins a document; not added to prompts, since K2's conversations have none."""
    eos: str
    """Special token that ends a document."""
    end_of_turn: str
    """Special token that ends a message; generation stops there too."""
    unknown: str
    """Special token named as unknown; byte-level BPE never needs it."""
    padding: str
    """Special token for padding."""
    chat_template: str | None
    """Jinja text; None for a model that does not converse."""

    def __post_init__(self) -> None:
        for field in ("bos", "eos", "end_of_turn", "unknown", "padding"):
            if getattr(self, field) not in self.special_tokens:
                raise ConfigError(
                    f"vocabulary.{field} is {getattr(self, field)!r}; expected one of the "
                    f"{len(self.special_tokens)} special tokens"
                )

    @property
    def size(self) -> int:
        """Ids of this vocabulary."""
        return len(self.base_tokens) + len(self.special_tokens)

    def write(self, writer: GGUFWriter, num_rows: int) -> None:
        """Add the vocabulary for an embedding of `num_rows` rows; rows without a token get one that is never used.

        Special tokens are control tokens, all of them, as llama.cpp's converter has it for Kimi K2: a text that spells
        one does not become one. Servers over llama.cpp show the tool markers where its K2 parser asks for them.

        Raises ConfigError for an embedding of fewer rows than there are tokens.
        """
        if self.size > num_rows:
            raise ConfigError(
                f"the vocabulary has {self.size} tokens, above model.vocab_size = {num_rows}; is it of another model?"
            )
        rest = range(self.size, num_rows)
        kinds = [TokenType.NORMAL] * len(self.base_tokens)
        kinds += [TokenType.CONTROL] * len(self.special_tokens) + [TokenType.UNUSED] * len(rest)
        ids = {name: number for number, name in enumerate(self.special_tokens, start=len(self.base_tokens))}
        writer.add_tokenizer_model(TOKENIZER_MODEL)
        writer.add_tokenizer_pre(SPLIT_RULES)
        writer.add_token_list([*self.base_tokens, *self.special_tokens, *(f"[PAD{number}]" for number in rest)])
        writer.add_token_types(kinds)
        writer.add_token_merges([f"{left} {right}" for left, right in self.merges])
        writer.add_bos_token_id(ids[self.bos])
        writer.add_eos_token_id(ids[self.eos])
        writer.add_eot_token_id(ids[self.end_of_turn])
        writer.add_unk_token_id(ids[self.unknown])
        writer.add_pad_token_id(ids[self.padding])
        writer.add_add_bos_token(False)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)
