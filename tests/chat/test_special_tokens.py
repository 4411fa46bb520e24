"""K2's published ids, typed here from K2.md, against the tables computed from offsets."""

from chogori.chat.special_tokens import K2_OFFSETS, compact_table, full_table

K2_IDS = {
    "[BOS]": 163584,
    "[EOS]": 163585,
    "<|im_end|>": 163586,
    "<|im_user|>": 163587,
    "<|im_assistant|>": 163588,
    "<|im_system|>": 163594,
    "<|tool_calls_section_begin|>": 163595,
    "<|tool_calls_section_end|>": 163596,
    "<|tool_call_begin|>": 163597,
    "<|tool_call_argument_begin|>": 163598,
    "<|tool_call_end|>": 163599,
    "<|im_middle|>": 163601,
}


def test_full_table_has_the_published_ids() -> None:
    table = full_table(163_584)
    assert {name: table[name] for name in K2_IDS} == K2_IDS
    assert list(table.values()) == list(range(163_584, 163_840))
    assert table["<|reserved_token_163589|>"] == 163589
    assert table["[PAD]"] == 163839


def test_compact_table_ends_the_vocabulary_in_the_same_order() -> None:
    table = compact_table(1000, 1020)
    assert list(table.values()) == list(range(1000, 1020))
    assert [name for name in table if name in K2_OFFSETS] == list(K2_OFFSETS)
    assert list(table)[:3] == [f"<|reserved_token_{i}|>" for i in (1000, 1001, 1002)]
