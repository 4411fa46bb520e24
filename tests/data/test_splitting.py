"""The split: by name, stable, within its limit, never empty on either side."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.data.document import Document
from chogori.data.splitting import Split, split_documents
from chogori.data.spool import Spool
from chogori.errors import CorpusError


def split(folder: Path, sizes: dict[str, int], share: float = 0.2, limit: int = 100_000) -> tuple[Spool, Split]:
    with Spool(folder / "spool") as spool:
        for name, size in sizes.items():
            spool.append(Document(name, "x" * size))
        return spool, split_documents(spool, heldout_share=share, heldout_bytes=limit)


def heldout_names(folder: Path, sizes: dict[str, int]) -> set[str]:
    spool, parts = split(folder, sizes)
    return {spool.names[number] for number in parts.heldout}


@given(
    present=st.sets(st.integers(0, 400), min_size=60),
    added=st.sets(st.integers(401, 800), max_size=60),
)
def test_new_documents_move_no_old_one(
    tmp_path_factory: pytest.TempPathFactory, present: set[int], added: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("split")
    before = heldout_names(folder, {f"f{n}": 100 for n in sorted(present)})
    after = heldout_names(folder, {f"f{n}": 100 for n in sorted(present | added, reverse=True)})
    assert {name for name in after if int(name[1:]) in present} == before


def test_share_is_about_what_was_asked(tmp_path: Path) -> None:
    """Binomial with n = 4,000, p = 0.2: standard deviation 25; four of them are allowed."""
    _, parts = split(tmp_path, {f"f{n}": 20 for n in range(4000)})
    assert abs(len(parts.heldout) - 800) < 100
    assert sorted([*parts.train, *parts.heldout]) == list(range(4000))


def test_limit_leaves_documents_unused_not_trained(tmp_path: Path) -> None:
    sizes = {f"f{n}": 100 for n in range(200)}
    _, free = split(tmp_path, sizes)
    spool, parts = split(tmp_path, sizes, limit=1000)
    assert list(parts.heldout) == list(free.heldout)[:10]
    assert sorted(parts.unused) == sorted(set(free.heldout) - set(parts.heldout))
    assert list(parts.train) == list(free.train)
    assert sum(spool.sizes[number] for number in parts.heldout) <= 1000


def test_a_big_document_is_never_held_out(tmp_path: Path) -> None:
    sizes = {f"f{n}": 26_000 if n % 2 else 100 for n in range(300)}
    spool, parts = split(tmp_path, sizes, share=0.5)
    assert {spool.sizes[number] for number in parts.heldout} == {100}


def test_neither_side_is_left_empty(tmp_path: Path) -> None:
    _, parts = split(tmp_path, {"a": 10, "b": 10, "c": 10}, share=1e-9)
    assert (len(parts.train), len(parts.heldout)) == (2, 1)
    _, parts = split(tmp_path, {"a": 10, "b": 10, "c": 10}, share=1 - 1e-9)
    assert (len(parts.train), len(parts.heldout)) == (1, 2)


def test_a_single_document_is_cut_at_a_line(tmp_path: Path) -> None:
    text = "".join(f"行 {n}\n" for n in range(1000))
    with Spool(tmp_path / "spool") as spool:
        spool.append(Document("only.txt", text))
        parts = split_documents(spool, heldout_share=0.1, heldout_bytes=10**6)
        train, heldout = (spool.content(*numbers).decode() for numbers in (parts.train, parts.heldout))
        assert spool.names == ["only.txt", "only.txt#end"]
    assert train + heldout == text
    assert train.endswith("\n")
    assert 0.1 <= len(heldout) / len(text) < 0.11


def test_a_single_line_is_cut_between_characters(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.append(Document("only.txt", "山" * 50))
        parts = split_documents(spool, heldout_share=0.1, heldout_bytes=10**6)
        assert spool.content(parts.train[0]).decode() + spool.content(parts.heldout[0]).decode() == "山" * 50


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"only\.txt is all the text there is, 1 bytes: too little"):
        split(tmp_path, {"only.txt": 1})
