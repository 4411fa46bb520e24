"""Which documents are held out: by a hash of their names, so that new documents move no old one.

A document is held out when its hash lies in the lowest `heldout_share`. One larger than a quarter of the held-out limit
never is: it would be most of the test, and a user's only big file must not vanish from training. When the rule leaves
one side empty, a single document is moved; when there is nothing to move, the end of one is cut off at a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chogori.data.document import stable_share
from chogori.data.spool import Spool
from chogori.errors import CorpusError

_PURPOSE = "held out"


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of documents in the spool."""

    train: Sequence[int]
    """In the order they were read."""
    heldout: Sequence[int]
    """In order of hash, so that a smaller limit takes the first of them."""
    unused: Sequence[int]
    """Held out, but beyond the size limit."""


def split_documents(spool: Spool, *, heldout_share: float, heldout_bytes: int) -> Split:
    """Choose the held-out documents. Raises CorpusError when there is too little text for two sides."""
    shares = [stable_share(name, _PURPOSE) for name in spool.names]
    eligible = [number for number, size in enumerate(spool.sizes) if size <= heldout_bytes // 4]
    chosen = sorted((n for n in eligible if shares[n] < heldout_share), key=lambda n: (shares[n], n))
    if len(spool) > 1 and eligible and not chosen:
        chosen = [min(eligible, key=lambda n: (shares[n], n))]
    if len(spool) > 1 and len(chosen) == len(spool):
        chosen.pop()
    if len(spool) == 1 or not chosen:
        return _cut_one(spool, min(range(len(spool)), key=lambda n: (shares[n], n)), heldout_share, heldout_bytes)
    heldout: list[int] = []
    unused: list[int] = []
    total = 0
    for number in chosen:
        if total + spool.sizes[number] <= heldout_bytes:
            heldout.append(number)
            total += spool.sizes[number]
        else:
            unused.append(number)
    out = set(chosen)
    return Split([number for number in range(len(spool)) if number not in out], heldout, unused)


def _cut_one(spool: Spool, number: int, heldout_share: float, heldout_bytes: int) -> Split:
    content = spool.content(number)
    position = len(content) - max(1, min(heldout_bytes, round(len(content) * heldout_share)))
    line_end = content.rfind(b"\n", 0, position)
    if line_end > 0:
        position = line_end + 1
    while position > 0 and content[position] & 0xC0 == 0x80:  # inside a character
        position -= 1
    if position < 1:
        raise CorpusError(
            f"{spool.names[number]} is all the text there is, {len(content)} bytes: too little to train on one part "
            "and hold out another. Add text with data.paths."
        )
    end = spool.divide(number, position)
    return Split(range(end), [end], [])
