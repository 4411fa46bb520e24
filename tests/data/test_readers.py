"""Every kind of file gives back the text that was put in; what is no text or is damaged is told apart."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from chogori.data.document import Document
from chogori.data.readers import NotText, read_documents
from chogori.errors import CorpusError

TEXT = "A line, 一行の文、一行文字。\r\n\tTab — and no line end"


def read(path: Path, text_field: str = "text") -> list[Document]:
    return list(read_documents(path, path.name, text_field=text_field))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_any_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "note.md"
    path.write_bytes(TEXT.encode(encoding))
    assert read(path) == [Document("note.md", TEXT)]


def test_records_and_tables(tmp_path: Path) -> None:
    texts = [TEXT, "second", "", None]
    lines = tmp_path / "data.jsonl"
    lines.write_text("\n".join(json.dumps({"body": text, "n": 1}) for text in texts) + "\n\n")
    table = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [1] * 4, "body": texts}), table)
    for path in (lines, table):
        documents = read(path, "body")
        assert [document.text for document in documents] == [TEXT, "second", "", ""]
        assert [document.name for document in documents] == [f"{path.name}#{n}" for n in (1, 2, 3, 4)]


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_content_size=False).compress,
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSORS[suffix]
    plain = tmp_path / f"note.txt{suffix}"
    plain.write_bytes(compress(TEXT.encode()) + compress(b" and more"))  # two members in one file
    assert read(plain) == [Document(plain.name, TEXT + " and more")]
    lines = tmp_path / f"data.jsonl{suffix}"
    lines.write_bytes(compress(json.dumps({"text": TEXT}).encode()))
    assert read(lines) == [Document(f"data.jsonl{suffix}#1", TEXT)]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_truncated_archive_is_an_error_not_a_shorter_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"note.txt{suffix}"
    path.write_bytes(COMPRESSORS[suffix](TEXT.encode() * 100)[:-6])
    with pytest.raises(CorpusError, match=r"note\.txt.* cannot be decompressed .* is it complete"):
        read(path)


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_what_is_no_archive_at_all(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"note.txt{suffix}"
    path.write_bytes(b"plain text under a wrong name")
    with pytest.raises(CorpusError, match="cannot be decompressed"):
        read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
        (b"a" * 9000 + b"\0", "binary"),
        ("Größe".encode("latin-1"), r"not UTF-8 \(byte 2\)"),
        (b"\xff\xfeodd", "not UTF-16"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(NotText, match=reason):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data\.jsonl, line 2: found no JSON"),
        ("[1]", r"line 2: found b'\[1\].*expected an object with 'text'"),
        ('{"body": "x", "id": 3}', r"line 2: found fields body, id; expected text in 'text'.*data\.text_field"),
        ('{"text": 3}', r"line 2: 'text' is of type int"),
        (r'{"text": "\ud83d"}', r"line 2: 'text' holds half of a surrogate pair \(U\+D83D\)"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(CorpusError, match=message):
        read(path)


def test_broken_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(CorpusError, match=r"data\.parquet cannot be read as Parquet"):
        read(path)
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "id": [1]}), path)
    with pytest.raises(CorpusError, match=r"has columns body, id; expected text in 'text'"):
        read(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), path)
    with pytest.raises(CorpusError, match=r"row 1: 'text' is of type int"):
        read(path)
