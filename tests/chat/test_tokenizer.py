"""Round trips, parity with `tokenizers` and transformers, K2's own file format, and what is refused."""

import json
import subprocess
import sys
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from chogori.chat import SAMPLES, Tokenizer, bytes_per_token
from chogori.chat.bpe_ranks import K2_SPLIT_PATTERN, merges_of, write_tiktoken
from chogori.chat.special_tokens import K2_OFFSETS, NOT_FLAGGED_SPECIAL, full_table
from chogori.chat.tokenizer import _chunks
from chogori.errors import StorageError, TokenizerError

# Letters of several scripts, marks, numbers, spaces and line ends of all kinds, contractions, emoji with joiners:
# runs of these exercise every branch of the split pattern far more often than characters drawn at random.
PIECES = [
    *"aZéß中文字あいウエ한ไह्Жª²½１٣_.,!?。、「」'’`~$€+\"\\/#",
    *"\t\n\r\x0b\x0c \u3000\xa0\u2028\x00\x1f\x7f\x85\u0301\u200d\ufeff",
    "'s",
    "'LL",
    "don't",
    "  ",
    "\r\n",
    "12345",
    "🙂",
    "👩‍👩‍👧",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "<|im_end|>",
    "[BOS]",
    "々",
    "〇",
    "\U00020000",
    "ǅ",
]
any_text = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(PIECES)).map("".join)


@given(any_text)
@example("".join(map(chr, range(256))))
def test_every_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.sampled_from([*K2_OFFSETS, "x", " ", "<|", "|>", "<|reserved_token_898|>"])).map("".join))
def test_text_never_encodes_to_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    assert not set(tokenizer.encode(text)) & set(tokenizer.special_tokens.values())


def test_both_regex_engines_split_alike() -> None:
    """Training splits with Oniguruma, encoding with tiktoken's engine.

    With every pair of bytes a token and nothing longer, a piece of odd length shows its end: the ids of a text equal
    the ids of Oniguruma's pieces one by one only where tiktoken cuts at the same places.
    """
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {bytes(pair): 256 + i for i, pair in enumerate(product(range(256), repeat=2))}
    encoding = tiktoken.Encoding("pairs", pat_str=K2_SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def differing(pattern: str) -> list[str]:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        pieces = ([piece for piece, _ in split.pre_tokenize_str(text)] for text in texts)
        one_by_one = [list(chain.from_iterable(map(encoding.encode_ordinary, group))) for group in pieces]
        return [text for text, ids in zip(texts, one_by_one, strict=True) if ids != encoding.encode_ordinary(text)]

    texts = ["".join(group) for group in product(PIECES, repeat=2)]
    scalars = (chr(c) for c in range(0, 0x30000, 7) if not 0xD800 <= c < 0xE000)
    texts += [f"ab{c}cDe{c}1{c} {c}{c}A漢{c}.{c}\n" for c in scalars]
    assert differing(K2_SPLIT_PATTERN) == []
    assert differing(r"\S+|\s+"), "the comparison must be able to fail"


def test_han_numbers_and_words_are_split_as_k2_does() -> None:
    split = pre_tokenizers.Split(tokenizers.Regex(K2_SPLIT_PATTERN), "isolated")
    pieces = [piece for piece, _ in split.pre_tokenize_str("HelloWorld don't 12345 日本語のテスト。\n  x")]
    assert pieces == ["Hello", "World", " don't", " ", "123", "45", " ", "日本語", "のテスト", "。\n", " ", " x"]


@given(any_text)
def test_transformers_encodes_alike(saved: Path, tokenizer: Tokenizer, text: str) -> None:
    """Parity with `tokenizers` itself, which merges by its own list, on what `save` wrote."""
    theirs = _auto_tokenizer(saved)
    text = text.replace("<|im_end|>", "").replace("[BOS]", "")  # transformers reads markers in text, we do not
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text


def test_transformers_knows_the_special_tokens(saved: Path, tokenizer: Tokenizer) -> None:
    theirs = _auto_tokenizer(saved)
    assert len(theirs) == tokenizer.vocab_size == 900
    assert {name: theirs.convert_tokens_to_ids(name) for name in K2_OFFSETS} == {
        name: tokenizer.id_of(name) for name in K2_OFFSETS
    }
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    marked = [tokenizer.id_of(name) for name in K2_OFFSETS]
    assert theirs.decode(marked) == tokenizer.decode(marked) == "".join(K2_OFFSETS)
    shown = [name for name in K2_OFFSETS if name in NOT_FLAGGED_SPECIAL]
    assert theirs.decode(marked, skip_special_tokens=True) == "".join(shown)


def test_saved_folder_carries_the_chat_template(saved: Path, tokenizer: Tokenizer) -> None:
    """What it renders is checked in test_template.py."""
    assert sorted(path.name for path in saved.iterdir()) == sorted(tokenizer.files())
    written = (saved / "chat_template.jinja").read_text(encoding="utf-8")
    assert _auto_tokenizer(saved).chat_template == written
    assert "## Return of " in written


def test_special_tokens_are_the_last_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_of(name) for name in K2_OFFSETS] == list(range(900 - len(K2_OFFSETS), 900))


def test_training_is_deterministic(texts: list[str], tokenizer: Tokenizer) -> None:
    again = Tokenizer.train(iter(texts), vocab_size=900)
    assert again.files() == tokenizer.files()
    assert again.fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(texts[:2], vocab_size=900).fingerprint != tokenizer.fingerprint


def test_training_does_not_depend_on_threads_or_hash_seeds(texts: list[str], tokenizer: Tokenizer) -> None:
    script = (
        "import json, sys; from chogori.chat import Tokenizer; "
        "print(Tokenizer.train(json.load(sys.stdin), vocab_size=900).fingerprint)"
    )
    for threads, seed in (("1", "1"), ("3", "2")):
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "true"}
        result = subprocess.run(
            [sys.executable, "-c", script], input=json.dumps(texts), capture_output=True, text=True, env=environment
        )
        assert result.stdout.strip() == tokenizer.fingerprint, result.stderr


def test_a_short_text_still_gives_the_size_asked_for() -> None:
    short = Tokenizer.train(["hello hello"], vocab_size=300)
    assert short.vocab_size == 300
    assert short.num_merges < 300 - 256 - len(K2_OFFSETS)
    assert short.id_of("[PAD]") == 299
    assert short.decode(short.encode("hello?")) == "hello?"


def test_save_and_load_give_the_same_tokenizer(saved: Path, tokenizer: Tokenizer) -> None:
    for path in (saved, saved / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.files() == tokenizer.files()


def test_k2_file_gives_the_same_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A vocabulary in the format of K2's tiktoken.model: same text ids, all 256 special tokens after them."""
    ranks = tokenizer.ranks
    (tmp_path / "tiktoken.model").write_bytes(write_tiktoken(ranks))
    k2 = Tokenizer.load(tmp_path)
    for text in (*SAMPLES.values(), "".join(PIECES)):
        assert k2.encode(text) == tokenizer.encode(text)
    assert k2.special_tokens == full_table(len(ranks))
    assert k2.bos_id == len(ranks)
    assert k2.vocab_size == len(ranks) + 256
    k2.save(tmp_path / "converted")
    assert Tokenizer.load(tmp_path / "converted").fingerprint == k2.fingerprint
    text = "".join(SAMPLES.values())
    assert _auto_tokenizer(tmp_path / "converted").encode(text, add_special_tokens=False) == k2.encode(text)


def test_merges_follow_from_ranks(texts: list[str], tokenizer: Tokenizer) -> None:
    """The merges computed from ranks are those `tokenizers` learned, in the order it learned them."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(K2_SPLIT_PATTERN), "isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900 - len(K2_OFFSETS), initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    learned = json.loads(trained.to_str())["model"]["merges"]
    ours = json.loads(tokenizer.files()["tokenizer.json"])["model"]["merges"]
    assert len(ours) > 500
    assert ours == learned
    assert len(merges_of(tokenizer.ranks)) == len(learned)


def test_long_runs_are_cut_where_k2_cuts_them(tokenizer: Tokenizer) -> None:
    """Against a literal reading of K2's rule, character by character."""

    def k2_chunks(text: str) -> list[str]:
        chunks: list[str] = []
        for offset in range(0, len(text), 400_000):
            part = text[offset : offset + 400_000]
            begin, run, is_space = 0, 0, part[0].isspace()
            for i, character in enumerate(part):
                if character.isspace() == is_space:
                    run += 1
                else:
                    run, is_space = 1, character.isspace()
                if run > 25_000:
                    chunks.append(part[begin:i])
                    begin, run = i, 1
            chunks.append(part[begin:])
        return chunks

    texts = [
        "word " * 30_000,
        "a" * 25_000 + " b",
        "a" * 25_001 + " b",
        "x y" + " " * 60_000 + "あ" * 26_000 + "\n" * 25_000 + "z",
        "ab \x1c" * 110_000,
    ]
    for text in texts:
        assert list(_chunks(text)) == k2_chunks(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*SAMPLES.values(), "", "x" * 50_000] * 3
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_token_lengths_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_lengths()
    assert len(lengths) == tokenizer.vocab_size
    for text in SAMPLES.values():
        assert sum(lengths[i] for i in tokenizer.encode(text)) == len(text.encode())
    assert {lengths[i] for i in tokenizer.special_tokens.values()} == {0}


def test_bytes_per_token_by_language(tokenizer: Tokenizer) -> None:
    figures = bytes_per_token(tokenizer, SAMPLES)
    assert list(figures) == ["en", "ja", "zh"]
    english = SAMPLES["en"]
    assert figures["en"] == len(english.encode()) / len(tokenizer.encode(english))
    bytes_only = Tokenizer.train([""], vocab_size=256 + len(K2_OFFSETS))
    assert bytes_per_token(bytes_only, SAMPLES) == {"en": 1, "ja": 1, "zh": 1}


def test_ids_that_end_within_a_character_decode_to_a_mark() -> None:
    bytes_only = Tokenizer.train([""], vocab_size=256 + len(K2_OFFSETS))
    ids = bytes_only.encode("山")
    assert bytes_only.decode(ids[:2]) == "\ufffd"
    assert bytes_only.decode_bytes(ids[:2]) == "山".encode()[:2]


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"lone surrogate \(U\+D83D\) at character 2.*replace it first"):
        tokenizer.encode("ab\ud83d")


def test_unknown_id_and_marker_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="token id 900 is outside this vocabulary of 900 ids"):
        tokenizer.decode([1, 900])
    with pytest.raises(TokenizerError, match="token id -1 is outside"):
        tokenizer.decode([-1])
    with pytest.raises(TokenizerError, match=r"'<\|imend\|>' is not a special token.*<\|im_end\|>"):
        tokenizer.id_of("<|imend|>")


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match="vocab_size is 200; expected at least 273"):
        Tokenizer.train(["x"], vocab_size=200)


def test_missing_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"holds no vocabulary; expected tokenizer\.json .* or tiktoken\.model"):
        Tokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match="does not exist"):
        Tokenizer.load(tmp_path / "tiktoken.model")


def test_damaged_k2_file_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tiktoken.model"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(TokenizerError, match=r"line 1: found b'version .*Git LFS pointer"):
        Tokenizer.load(path)
    whole = write_tiktoken(tokenizer.ranks)
    path.write_bytes(whole[: len(whole) // 8].rpartition(b"\n")[0])
    with pytest.raises(TokenizerError, match=r"has no token for .* of the 256 bytes"):
        Tokenizer.load(path)
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:400] + lines[401:]))
    with pytest.raises(TokenizerError, match="their ids are not 0 to"):
        Tokenizer.load(path)


def test_tokenizer_json_of_another_kind_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(TokenizerError, match=r"cannot be read.*expected a byte-level BPE"):
        Tokenizer.load(path)
    good = json.loads(tokenizer.files()["tokenizer.json"])
    for spoil, message in (
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\s+"), "by another pattern"),
        (lambda c: c["model"]["merges"].reverse(), "merges do not follow from its vocabulary"),
        (lambda c: c["added_tokens"].pop(0), "special tokens do not follow"),
    ):
        content = json.loads(json.dumps(good))
        spoil(content)
        path.write_text(json.dumps(content))
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.load(path)


def test_unwritable_folder_is_a_storage_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot be written to .*Free space or name another folder"):
        tokenizer.save(tmp_path / "file")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@cache
def _auto_tokenizer(folder: Path) -> Any:  # transformers chooses the class
    return AutoTokenizer.from_pretrained(folder)
