"""A byte-level BPE vocabulary as ranks (bytes -> id), and the three shapes it travels in.

Ranks are what K2's `tiktoken.model` holds: token bytes in base64 and their rank, one pair a line. `tokenizer.json`
holds the same as a vocabulary of byte characters and a list of merges; `merges_of` goes from the one to the other.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping
from pathlib import Path

from chogori.errors import TokenizerError

# K2 splits text into words before merging: runs of Han characters; words of other scripts, broken where lower case
# turns to upper, with the English contractions; numbers in groups of up to three; punctuation; line ends; spaces.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
K2_SPLIT_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""The split pattern of K2's tokenizer (`pat_str`); tiktoken's engine and Oniguruma both know its `&&`."""


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in `tokenizer.json` (the convention GPT-2 began)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters: list[str] = []
    num_moved = 0
    for byte in range(256):
        characters.append(chr(byte) if byte in printable else chr(0x100 + num_moved))
        num_moved += byte not in printable
    return characters


BYTE_CHARACTERS = _byte_characters()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def to_characters(token: bytes) -> str:
    """Write token bytes with one printable character a byte."""
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


def from_characters(text: str) -> bytes:
    """Undo `to_characters`. Raises KeyError on a character that stands for no byte."""
    return bytes(_BYTE_OF[character] for character in text)


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge behind every token of two bytes and more, in order of rank.

    A token's merge is the pair that is left when its own bytes are merged by all lower ranks. For a vocabulary trained
    by BPE this is the merge that made it: where the pair stood in the training text no merge crossed its borders, so
    merging the bytes alone gives the same pair. Tokens that lower ranks do not bring to a pair have no merge; they
    match whole words only (tiktoken looks a word up before it merges, `ignore_merges` in `tokenizers`).
    """
    merges: list[tuple[bytes, bytes]] = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            candidates = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
            best = min(candidates)
            if best >= rank:
                break
            where = candidates.index(best)
            parts[where : where + 2] = [parts[where] + parts[where + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def read_tiktoken_file(path: Path) -> dict[bytes, int]:
    """Read a `tiktoken.model` file. Raises TokenizerError naming the line that is not `base64 rank`."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{path}, line {number}: found {line[:60]!r}; expected a base64 token and its rank, as in K2's "
                "tiktoken.model. Is the download complete, or a Git LFS pointer?"
            ) from error
    check_ranks(ranks, path)
    return ranks


def write_tiktoken(ranks: Mapping[bytes, int]) -> bytes:
    """The content of a `tiktoken.model` file with these ranks."""
    rows = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in rows)


def check_ranks(ranks: Mapping[bytes, int], source: Path) -> None:
    """Raise TokenizerError unless the ranks are 0, 1, 2 … and every single byte is there."""
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{source} has no token for {len(missing)} of the 256 bytes (first: 0x{missing[0]:02x}), so it cannot "
            "write every text; expected a byte-level BPE vocabulary. Is the file complete?"
        )
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(
            f"{source} has {len(ranks)} tokens but their ids are not 0 to {len(ranks) - 1}; lines are missing or "
            "doubled. Download the file again."
        )
