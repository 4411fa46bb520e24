"""K2's special tokens: 256 ids after the base vocabulary, of which seventeen carry a name.

K2's own vocabulary has 163,584 base tokens, so `[BOS]` is 163584 and `[PAD]` 163839. A vocabulary trained here keeps
the named ones only, in the same order, as its last ids: 239 unused rows would be 3 % of an 8,192-token embedding.

Source: K2's published tokenizer configuration; K2.md, "Wire format".
"""

from __future__ import annotations

from collections.abc import Mapping

BOS = "[BOS]"
EOS = "[EOS]"
UNK = "[UNK]"
PAD = "[PAD]"
IM_END = "<|im_end|>"

NUM_K2_SPECIAL_TOKENS = 256

K2_OFFSETS: Mapping[str, int] = {
    BOS: 0,
    EOS: 1,
    IM_END: 2,
    "<|im_user|>": 3,
    "<|im_assistant|>": 4,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "[EOT]": 9,
    "<|im_system|>": 10,
    "<|tool_calls_section_begin|>": 11,
    "<|tool_calls_section_end|>": 12,
    "<|tool_call_begin|>": 13,
    "<|tool_call_argument_begin|>": 14,
    "<|tool_call_end|>": 15,
    "<|im_middle|>": 17,
    UNK: 254,
    PAD: 255,
}
"""Position of each named token after the last base token."""

NOT_FLAGGED_SPECIAL = frozenset(
    {
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    }
)
"""K2 leaves these unflagged so that a decoder told to skip special tokens still shows tool calls to a parser."""


def reserved_name(token_id: int) -> str:
    """The name K2 gives to a special id that has no use yet."""
    return f"<|reserved_token_{token_id}|>"


def full_table(num_base_tokens: int) -> dict[str, int]:
    """All 256 special tokens of K2 after a base vocabulary of the given size, by name, in order of id."""
    names = {offset: name for name, offset in K2_OFFSETS.items()}
    ids = range(num_base_tokens, num_base_tokens + NUM_K2_SPECIAL_TOKENS)
    return {names.get(i - num_base_tokens, reserved_name(i)): i for i in ids}


def compact_table(num_base_tokens: int, vocab_size: int) -> dict[str, int]:
    """The named tokens as the last ids below `vocab_size`; ids between the base and them are reserved."""
    first_named = vocab_size - len(K2_OFFSETS)
    table = {reserved_name(i): i for i in range(num_base_tokens, first_named)}
    return table | {name: first_named + rank for rank, name in enumerate(K2_OFFSETS)}
