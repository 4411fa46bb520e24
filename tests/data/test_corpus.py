"""Which files a configuration reads, in which order, under which names; what it skips and what it refuses."""

import os
from pathlib import Path

import pytest

from chogori.data import DataConfig
from chogori.data.corpus import Corpus
from chogori.errors import CorpusError


def names(corpus: Corpus) -> list[str]:
    return [document.name for document in corpus.documents()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    (root / "b").mkdir(parents=True)
    for name in ("z.md", "b/code.py", "b.txt", "空.txt"):
        (root / name).write_text(f"text of {name}")
    return root


def of(*paths: Path, **changes: object) -> Corpus:
    return Corpus(DataConfig(paths=paths, stdlib=False, **changes))  # pyright: ignore[reportArgumentType]


def test_folder_in_order_of_paths(folder: Path) -> None:
    expected = ["notes/b.txt", "notes/b/code.py", "notes/z.md", "notes/空.txt"]
    assert names(of(folder)) == expected
    assert names(of(folder, folder / "b")) == expected, "a file reached twice is read once"


def test_names_do_not_depend_on_where_the_folder_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = names(of(folder))
    monkeypatch.chdir(folder)
    assert names(of(Path())) == absolute
    monkeypatch.chdir(folder.parent)
    assert names(of(Path("notes"))) == absolute
    assert names(of(Path("notes/**/*.*"))) == absolute
    assert names(of(folder / "*.txt")) == ["notes/b.txt", "notes/空.txt"]


def test_skipped_files_are_listed(folder: Path) -> None:
    (folder / "photo.png").write_bytes(b"\x89PNG\0")
    (folder / "old.txt").write_bytes("Größe".encode("latin-1"))
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / "blank.txt").write_text(" \n")
    (folder / "broken").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    corpus = of(folder)
    assert names(corpus) == ["notes/b.txt", "notes/b/code.py", "notes/z.md", "notes/空.txt"]
    assert [(file.name, file.reason) for file in corpus.skipped] == [
        ("notes/.git", "hidden or cache"),
        ("notes/broken", "no regular file"),
        ("notes/loop", "a link to a folder"),
        ("notes/old.txt", "not UTF-8 (byte 2)"),
        ("notes/photo.png", "binary"),
    ]
    assert corpus.num_empty == 1
    names(corpus)
    assert len(corpus.skipped) == 5, "reading again counts again, not on top"


def test_a_binary_file_named_itself_is_refused(folder: Path) -> None:
    (folder / "photo.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(CorpusError, match=r"photo\.png is not text: binary; expected UTF-8 .* leave it out"):
        names(of(folder / "photo.png"))
    with pytest.raises(CorpusError, match=r"photo\.png is not text"):
        names(of(folder, folder / "photo.png"))
    assert names(of(folder / "photo.*", folder / "z.md")) == ["z.md"]


def test_missing_and_empty_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere, which does not exist; expected a folder, a file or a glob"):
        of(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"which holds no files; put text into it"):
        of(tmp_path)
    with pytest.raises(CorpusError, match=r"which matches no file; quote it and check the pattern"):
        of(tmp_path / "*.txt")


def test_signature_changes_with_the_files(folder: Path) -> None:
    signature = of(folder).signature()
    assert of(folder).signature() == signature
    status = (folder / "z.md").stat()
    (folder / "z.md").write_text("TEXT of z.md")
    os.utime(folder / "z.md", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    changed = of(folder).signature()
    assert changed != signature
    (folder / "new.txt").write_text("new")
    assert of(folder).signature() not in (signature, changed)


def test_paths_come_before_the_standard_library(folder: Path) -> None:
    documents = Corpus(DataConfig(paths=(folder,))).documents()
    first = [next(documents).name for _ in range(6)]
    assert first[3] == "notes/空.txt"
    assert first[4].startswith("python/")
