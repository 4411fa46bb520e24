"""The tokenizer: byte-level BPE with K2's split pattern and special tokens; trained here, or K2's own vocabulary.

Training is done by `tokenizers`, encoding by tiktoken, whichever file the vocabulary came from: tiktoken is several
times faster (benchmarks/bench_data_loading.py) and yields the same ids (`merges_of` has the reason,
tests/chat/test_tokenizer.py the check).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from chogori.chat import special_tokens
from chogori.chat.bpe_ranks import (
    BYTE_CHARACTERS,
    K2_SPLIT_PATTERN,
    check_ranks,
    from_characters,
    merges_of,
    read_tiktoken_file,
    to_characters,
)
from chogori.errors import StorageError, TokenizerError

# K2's tokenizer cuts longer texts here before it merges, and longer runs of spaces or of anything else: a token
# never spans such a cut. Kept so that ids equal K2's on any input.
_MAX_CHUNK_CHARS = 400_000
_MAX_RUN_CHARS = 25_000
_LONG_RUN = re.compile(rf"(?<!\s)\s{{{_MAX_RUN_CHARS + 1}}}|(?<!\S)\S{{{_MAX_RUN_CHARS + 1}}}")
_RUN_PIECE = re.compile(rf"\s{{1,{_MAX_RUN_CHARS}}}|\S{{1,{_MAX_RUN_CHARS}}}")

CHAT_TEMPLATE = "chat_template.jinja"
"""The chat template's file, here and in the folder of a saved tokenizer."""

_MODEL_MAX_LENGTH = 131_072  # K2's context, in tokens
_MAX_THREADS = 8


class Tokenizer:
    """Text to token ids and back. Immutable; safe to share between threads.

    Build one with `train` or `load`. Every Unicode text survives `decode(encode(text))`; text never encodes to a
    special token, even where it spells one: those ids are added by whoever renders a conversation, through `id_of`.
    """

    def __init__(self, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> None:
        """`ranks`: token bytes to id, 0 … n−1; `special`: marker to id, n …, in order of id."""
        assert list(special.values()) == list(range(len(ranks), len(ranks) + len(special)))
        self._ranks = dict(ranks)
        self._special = dict(special)
        self._encoding = tiktoken.Encoding(
            "chogori", pat_str=K2_SPLIT_PATTERN, mergeable_ranks=self._ranks, special_tokens={}
        )
        by_rank = sorted(self._ranks, key=self._ranks.__getitem__)
        self._token_bytes = (*by_rank, *(name.encode() for name in self._special))
        self.vocab_size = len(self._token_bytes)
        self.bos_id = self.id_of(special_tokens.BOS)
        self.eos_id = self.id_of(special_tokens.EOS)
        self.fingerprint = self._compute_fingerprint()

    # ---- making one -------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
        """Learn byte-level BPE merges from texts. The same texts in the same order give the same vocabulary.

        The vocabulary has exactly `vocab_size` ids: 256 bytes, the merges learned, then K2's named special tokens as
        the last ids. Texts too short for so many merges leave reserved ids between (`num_merges` tells).

        Raises TokenizerError when `vocab_size` has no room for the bytes and the special tokens.
        """
        num_base_tokens = vocab_size - len(special_tokens.K2_OFFSETS)
        if num_base_tokens < 256:
            raise TokenizerError(
                f"vocab_size is {vocab_size}; expected at least {256 + len(special_tokens.K2_OFFSETS)}: 256 bytes and "
                f"{len(special_tokens.K2_OFFSETS)} special tokens."
            )
        trained = tokenizers.Tokenizer(models.BPE())
        trained.pre_tokenizer = _split_and_byte_map()
        trainer = trainers.BpeTrainer(
            vocab_size=num_base_tokens, initial_alphabet=sorted(BYTE_CHARACTERS), show_progress=False
        )
        trained.train_from_iterator(texts, trainer)
        ranks = {from_characters(token): rank for token, rank in trained.get_vocab(with_added_tokens=False).items()}
        return cls(ranks, special_tokens.compact_table(len(ranks), vocab_size))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a vocabulary: a folder or file with `tokenizer.json` as `save` writes it, or K2's `tiktoken.model`.

        Raises TokenizerError when there is none, when it is damaged, or when it is of another kind.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in ("tokenizer.json", "tiktoken.model") if (path / name).is_file()]
            if not found:
                raise TokenizerError(
                    f"{path} holds no vocabulary; expected tokenizer.json (written by Tokenizer.save) or "
                    "tiktoken.model (K2's own file) in it."
                )
            path = found[0]
        if not path.is_file():
            raise TokenizerError(f"{path} does not exist; expected a tokenizer.json, a tiktoken.model or their folder.")
        if path.suffix == ".json":
            return cls(*_read_tokenizer_json(path))
        ranks = read_tiktoken_file(path)
        return cls(ranks, special_tokens.full_table(len(ranks)))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, for `transformers.AutoTokenizer`.

        It encodes as this one does, save that transformers turns marker text into special ids, and does not cut texts
        beyond 400,000 characters as K2 does. Raises StorageError when the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self.files().items():
                partial = folder / f".{name}.partial"
                partial.write_bytes(content)
                partial.replace(folder / name)
        except OSError as error:
            raise StorageError(
                f"The tokenizer cannot be written to {folder}: {error.strerror}. Free space or name another folder."
            ) from error

    def files(self) -> dict[str, bytes]:
        """The files `save` writes, by name; the same tokenizer gives the same bytes."""
        model = models.BPE(
            vocab={to_characters(token): rank for token, rank in self._ranks.items()},
            merges=[(to_characters(left), to_characters(right)) for left, right in merges_of(self._ranks)],
            ignore_merges=True,
        )
        whole = tokenizers.Tokenizer(model)
        whole.pre_tokenizer = _split_and_byte_map()
        whole.decoder = decoders.ByteLevel()
        add_tokens = cast(Any, whole).add_tokens  # its stub is incomplete
        for name in self._special:
            flagged = name not in special_tokens.NOT_FLAGGED_SPECIAL
            add_tokens([tokenizers.AddedToken(name, normalized=False, special=flagged)])
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": _MODEL_MAX_LENGTH,
            "bos_token": special_tokens.BOS,
            "eos_token": special_tokens.EOS,
            "unk_token": special_tokens.UNK,
            "pad_token": special_tokens.PAD,
            "clean_up_tokenization_spaces": False,
        }
        return {
            "tokenizer.json": whole.to_str(pretty=True).encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
            CHAT_TEMPLATE: resources.files("chogori.chat").joinpath(CHAT_TEMPLATE).read_bytes(),
        }

    # ---- using one --------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without any special token. Raises TokenizerError on a lone surrogate."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, which "
                "no UTF-8 text can; replace it first, e.g. text.encode('utf-8', 'replace').decode()."
            ) from error
        if len(text) <= _MAX_RUN_CHARS:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        for chunk in _chunks(text):
            ids += self._encoding.encode_ordinary(chunk)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on as many threads as there are processors (at most 8)."""
        num_threads = min(os.cpu_count() or 1, _MAX_THREADS, len(texts))
        if num_threads <= 1:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(num_threads, thread_name_prefix="chogori-encode") as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens as their names, bytes that are not UTF-8 as U+FFFD.

        Raises TokenizerError on an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of token ids: what `decode` reads as UTF-8. A token may end within a character."""
        table = self._token_bytes
        for token_id in ids:
            if not 0 <= token_id < len(table):
                raise TokenizerError(
                    f"token id {token_id} is outside this vocabulary of {len(table)} ids; was it made by another "
                    "tokenizer, or by a model with a larger embedding?"
                )
        return b"".join([table[token_id] for token_id in ids])

    def token_lengths(self) -> list[int]:
        """UTF-8 bytes that each id stands for in a text: 0 for special tokens, which no text encodes to."""
        return [len(token) for token in self._token_bytes[: len(self._ranks)]] + [0] * len(self._special)

    def id_of(self, marker: str) -> int:
        """The id of a special token such as `<|im_end|>`. Raises TokenizerError when there is no such token."""
        try:
            return self._special[marker]
        except KeyError:
            named = [name for name in self._special if not name.startswith("<|reserved_token_")]
            raise TokenizerError(
                f"{marker!r} is not a special token of this vocabulary; it has {', '.join(named) or 'none'}."
            ) from None

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens by name, in order of id."""
        return MappingProxyType(self._special)

    @property
    def ranks(self) -> Mapping[bytes, int]:
        """Base tokens as bytes and their ids: what K2's `tiktoken.model` would hold."""
        return MappingProxyType(self._ranks)

    @property
    def num_merges(self) -> int:
        """Tokens longer than one byte."""
        return len(self._ranks) - 256

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256(K2_SPLIT_PATTERN.encode())
        for token in self._token_bytes:
            digest.update(len(token).to_bytes(4, "big") + token)
        digest.update(json.dumps(self._special).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"


def bytes_per_token(tokenizer: Tokenizer, texts: Mapping[str, str]) -> dict[str, float]:
    """UTF-8 bytes each token stands for on average, per named text (`language_samples.SAMPLES` for en, ja, zh)."""
    return {name: len(text.encode()) / len(tokenizer.encode(text)) for name, text in texts.items()}


def _split_and_byte_map() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(K2_SPLIT_PATTERN), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _chunks(text: str) -> Iterator[str]:
    """Cut a text where K2's tokenizer does: every 400,000 characters, and runs longer than 25,000."""
    for start in range(0, len(text), _MAX_CHUNK_CHARS):
        chunk = text[start : start + _MAX_CHUNK_CHARS]
        if not _LONG_RUN.search(chunk):
            yield chunk
            continue
        begin = 0
        previous: re.Match[str] | None = None
        for piece in _RUN_PIECE.finditer(chunk):
            # Two pieces of one kind in a row are one run that reached the limit.
            if previous is not None and piece[0][0].isspace() == previous[0][0].isspace():
                yield chunk[begin : piece.start()]
                begin = piece.start()
            previous = piece
        yield chunk[begin:]


def _read_tokenizer_json(path: Path) -> tuple[dict[bytes, int], dict[str, int]]:
    """Ranks and special tokens of a `tokenizer.json`, which must be byte-level BPE with K2's split pattern."""
    expected = "expected a byte-level BPE tokenizer.json with K2's split pattern, as Tokenizer.save writes it"
    try:
        content = cast(dict[str, Any], json.loads(path.read_bytes()))
        vocabulary = cast(dict[str, int], content["model"]["vocab"])
        merges = cast(list[list[str]], content["model"]["merges"])
        added = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
        pattern = str(content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"])
        ranks = {from_characters(token): rank for token, rank in vocabulary.items()}
        pairs = [(from_characters(left), from_characters(right)) for left, right in merges]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise TokenizerError(f"{path} cannot be read ({error!r}); {expected}.") from error
    if pattern != K2_SPLIT_PATTERN:
        raise TokenizerError(f"{path} splits text by another pattern, {pattern[:60]!r}…; {expected}.")
    check_ranks(ranks, path)
    if pairs != merges_of(ranks):
        raise TokenizerError(f"{path}: its merges do not follow from its vocabulary; {expected}.")
    special = dict(sorted(added.items(), key=lambda item: item[1]))
    if list(special.values()) != list(range(len(ranks), len(ranks) + len(special))):
        raise TokenizerError(f"{path}: its special tokens do not follow its {len(ranks)} base tokens; {expected}.")
    return ranks, special
