"""One file to documents: text, JSONL or Parquet, plain or compressed.

Text must be UTF-8 (a byte-order mark is dropped; UTF-16 and UTF-32 with one are read as such). Nothing is guessed and
nothing is replaced: whatever else raises NotText, and the caller decides whether that is an error or a skipped file.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from chogori.data.document import Document
from chogori.data.records import text_of_record
from chogori.errors import CorpusError

_SNIFFED_BYTES = 8192
_RECORD_SUFFIXES = {".jsonl", ".ndjson"}
_TABLE_SUFFIXES = {".parquet"}
_COMPRESSED_SUFFIXES = {".gz", ".xz", ".zst"}
_BROKEN_ARCHIVE = "cannot be decompressed ({}); is it complete? Replace or remove it."
# The longer mark first: UTF-32's begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class NotText(Exception):
    """The file is no text; `args[0]` says why in a few words. Never leaves this package."""


def read_documents(path: Path, name: str, *, text_field: str) -> Iterator[Document]:
    """The documents of one file. Raises NotText, and CorpusError for broken records or a broken archive."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compressed = suffixes[-1:] != [] and suffixes[-1] in _COMPRESSED_SUFFIXES
    kind = (suffixes[:-1] if compressed else suffixes)[-1:]
    try:
        with _open(path, suffixes[-1] if compressed else "") as file:
            if kind and kind[0] in _RECORD_SUFFIXES:
                yield from _read_records(file, path, name, text_field)
            elif kind and kind[0] in _TABLE_SUFFIXES:
                yield from _read_table(file, path, name, text_field)
            else:
                yield Document(name, _read_text(file))
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"{path} {_BROKEN_ARCHIVE.format(error)}") from error
    except PermissionError as error:
        raise CorpusError(
            f"{path} may not be read ({error.strerror}); change its permissions or leave it out."
        ) from error


def _open(path: Path, compression: str) -> IO[bytes]:
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == ".xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if compression == ".zst":
        return _open_zstd(path)
    return path.open("rb")


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard  # optional: only corpora in .zst need it
    except ImportError as error:
        raise CorpusError(f"{path} is compressed with zstd; install its reader: pip install zstandard") from error
    pieces: list[bytes] = []
    rest = path.read_bytes()
    try:
        while rest:
            frame = zstandard.ZstdDecompressor().decompressobj()
            pieces.append(frame.decompress(rest))
            if not frame.eof:
                raise EOFError("it ends within a frame")
            rest = frame.unused_data
    except zstandard.ZstdError as error:
        raise CorpusError(f"{path} {_BROKEN_ARCHIVE.format(error)}") from error
    return io.BytesIO(b"".join(pieces))


def _read_text(file: IO[bytes]) -> str:
    head = file.read(_SNIFFED_BYTES)
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return _decode(head + file.read(), encoding)
    if b"\0" in head:
        raise NotText("binary")
    content = head + file.read()
    if b"\0" in content:
        raise NotText("binary")
    return _decode(content, "utf-8")


def _decode(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotText(f"not {encoding.upper().removesuffix('-SIG')} (byte {error.start})") from error


def _read_records(file: IO[bytes], path: Path, name: str, text_field: str) -> Iterator[Document]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record: object = json.loads(line)
        except ValueError as error:
            raise CorpusError(
                f"{path}, line {number}: found no JSON ({error}); expected one record a line. Mend or remove the line."
            ) from error
        if not isinstance(record, dict):
            raise CorpusError(f"{path}, line {number}: found {line[:40]!r}; expected an object with {text_field!r}.")
        fields = cast(dict[str, object], record)
        yield Document(f"{name}#{number}", text_of_record(fields, text_field, f"{path}, line {number}"))


def _read_table(file: IO[bytes], path: Path, name: str, text_field: str) -> Iterator[Document]:
    try:
        arrow = cast(Any, importlib.import_module("pyarrow"))  # optional and heavy: only Parquet corpora need it
        parquet = cast(Any, importlib.import_module("pyarrow.parquet"))
    except ImportError as error:
        raise CorpusError(f"{path} is Parquet; install its reader: pip install 'chogori[datasets]'") from error
    try:
        table = parquet.ParquetFile(file)
        columns: list[str] = list(table.schema_arrow.names)
        if text_field not in columns:
            raise CorpusError(
                f"{path} has columns {', '.join(columns)}; expected text in {text_field!r}. Name its column with "
                "data.text_field."
            )
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield Document(
                    f"{name}#{number}", text_of_record({text_field: text}, text_field, f"{path}, row {number}")
                )
    except arrow.ArrowException as error:
        raise CorpusError(
            f"{path} cannot be read as Parquet ({error}); is it complete? Replace or remove it."
        ) from error
