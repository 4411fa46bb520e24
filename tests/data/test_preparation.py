"""A folder of text to shards: what comes out is what went in, always the same, whatever happens meanwhile."""

import errno
import json
import lzma
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from chogori.chat import SAMPLES, Tokenizer, bytes_per_token
from chogori.chat.bpe_ranks import write_tiktoken
from chogori.data import PreparedData, ShardSet, open_prepared, prepare
from chogori.data.spool import Spool
from chogori.durable_files import disk_errors
from chogori.errors import CorpusError, ShardError, StorageError, TokenizerError
from tests.data.conftest import small_config


def texts_of(data: PreparedData, shards: ShardSet) -> list[str]:
    texts: list[str] = []
    for number in range(shards.num_documents):
        document = shards.document(number).tolist()
        assert (document[0], document[-1]) == (data.tokenizer.bos_id, data.tokenizer.eos_id)
        texts.append(data.tokenizer.decode(document[1:-1]))
    return texts


def content_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_comes_out_is_what_went_in(prepared: PreparedData, text_folder: Path) -> None:
    train, heldout = texts_of(prepared, prepared.train), texts_of(prepared, prepared.heldout)
    files = [path.read_text("utf-8") for path in text_folder.rglob("*.py")]
    assert sorted(train + heldout) == sorted({text for text in files if text.strip()})
    assert not set(train) & set(heldout)


def test_manifest_counts_what_is_there(prepared: PreparedData, text_folder: Path) -> None:
    manifest = prepared.manifest
    train, heldout = texts_of(prepared, prepared.train), texts_of(prepared, prepared.heldout)
    assert len(manifest.train_shards) > 1
    for counts, texts, shards in (
        (manifest.train, train, prepared.train),
        (manifest.heldout, heldout, prepared.heldout),
    ):
        assert counts.documents == len(texts) == shards.num_documents
        assert counts.bytes == sum(len(text.encode()) for text in texts) == shards.num_bytes
        assert counts.tokens == shards.num_tokens
    assert manifest.documents_read == manifest.train.documents + manifest.heldout.documents
    assert manifest.bytes_read == manifest.train.bytes + manifest.heldout.bytes
    assert manifest.bytes_per_token == prepared.train.num_bytes / sum(len(prepared.tokenizer.encode(t)) for t in train)
    assert manifest.bytes_per_token_by_language == bytes_per_token(prepared.tokenizer, SAMPLES)
    joined = "".join(heldout).encode()
    assert manifest.heldout_xz_bits_per_byte == 8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / len(
        joined
    )
    assert manifest.heldout_zstd_bits_per_byte == 8 * len(zstandard.compress(joined, level=19)) / len(joined)
    assert not manifest.truncated
    assert manifest.vocab_size == prepared.tokenizer.vocab_size == prepared.train.vocab_size == 600


def test_preparing_again_reuses_and_another_folder_is_equal(
    prepared: PreparedData, text_folder: Path, tmp_path: Path
) -> None:
    config = small_config(text_folder, shard_tokens=40_000)
    times = {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")}
    stages: list[str] = []
    again = prepare(config, prepared.folder, progress=lambda stage, _: stages.append(stage))
    assert stages == []
    assert times == {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")}
    assert again.train.fingerprint == prepared.train.fingerprint
    shares: dict[str, list[float]] = {}
    prepare(config, tmp_path, progress=lambda stage, share: shares.setdefault(stage, []).append(share))
    assert content_of(tmp_path) == content_of(prepared.folder)
    assert all(0 <= share <= 1 for values in shares.values() for share in values)
    assert all(values == sorted(values) and values[-1] == 1 for values in shares.values())
    seeded = prepare(small_config(text_folder, shard_tokens=40_000, seed=9), tmp_path)
    assert seeded.train.fingerprint == prepared.train.fingerprint, "the seed orders reading only"


def test_changed_files_or_settings_prepare_anew(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(20):
        (source / f"{n}.txt").write_text(f"document {n} " * 20)
    folder = tmp_path / "prepared"
    config = small_config(source, vocab_size=300, near_duplicates=1.0, shard_tokens=200)
    first = prepare(config, folder)
    (source / "new.txt").write_text("something else " * 20)
    second = prepare(config, folder)
    assert second.manifest.documents_read == first.manifest.documents_read + 1
    third = prepare(small_config(source, vocab_size=290, near_duplicates=1.0), folder)
    assert third.tokenizer.vocab_size == 290
    names = {name for name in content_of(folder) if name.endswith(".bin")}
    assert names == {"train-00000.bin", "heldout-00000.bin"}, "no shard of an older preparation is left"


def test_a_vocabulary_may_be_given(prepared: PreparedData, text_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiktoken.model"
    path.write_bytes(write_tiktoken(prepared.tokenizer.ranks))
    data = prepare(small_config(text_folder, tokenizer=path), tmp_path / "prepared")
    assert data.tokenizer.vocab_size == len(prepared.tokenizer.ranks) + 256
    assert texts_of(data, data.heldout) == texts_of(prepared, prepared.heldout)
    with pytest.raises(TokenizerError, match="does not exist"):
        prepare(small_config(text_folder, tokenizer=tmp_path / "nothing"), tmp_path / "other")


def test_duplicates_are_dropped_and_listed(text_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    text = (text_folder / "json" / "decoder.py").read_text()
    (source / "a.py").write_text(text)
    (source / "b.py").write_text(text.replace("\n", "\r\n"))
    (source / "c.py").write_text(text + "\n# one more line\n")
    (source / "d.py").write_text((text_folder / "json" / "encoder.py").read_text())
    (source / "e.py").write_text((text_folder / "json" / "scanner.py").read_text())
    manifest = prepare(small_config(source), tmp_path / "prepared").manifest
    assert (manifest.exact_duplicates, manifest.near_duplicates) == (1, 1)
    assert [(d.name, d.kept) for d in manifest.duplicates] == [
        ("source/b.py", "source/a.py"),
        ("source/c.py", "source/a.py"),
    ]
    assert manifest.train.documents + manifest.heldout.documents == 3


def test_max_bytes_is_exact_and_cuts_between_characters(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(4):
        (source / f"{n}.txt").write_text(chr(ord("山") + n) * 100)
    manifest = prepare(small_config(source, max_bytes=700, vocab_size=280), tmp_path / "prepared").manifest
    assert manifest.truncated
    assert manifest.bytes_read == 700
    assert manifest.train.bytes + manifest.heldout.bytes == 699, "100 bytes hold 33 characters of three"


def test_tokenizer_learns_from_a_sample(text_folder: Path, tmp_path: Path) -> None:
    small = prepare(small_config(text_folder, tokenizer_bytes=100_000), tmp_path / "small")
    whole = prepare(small_config(text_folder), tmp_path / "whole")
    assert small.tokenizer.fingerprint != whole.tokenizer.fingerprint
    assert texts_of(small, small.train) == texts_of(whole, whole.train)


def test_skipped_files_are_warned_of_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "good.txt").write_text("good text\n" * 50)
    (source / "photo.png").write_bytes(b"\x89PNG\0")
    (source / "latin.txt").write_bytes(b"caf\xe9")
    message = r"2 files are no text and were skipped \(1 not UTF-8, 1 binary\), the first being source/latin\.txt"
    with pytest.warns(UserWarning, match=message):
        data = prepare(small_config(source, vocab_size=300), tmp_path / "prepared")
    assert data.manifest.skipped_files == 2
    prepare(small_config(source, vocab_size=300), tmp_path / "prepared")  # a warning would be an error here
    entries = json.loads((tmp_path / "prepared" / "manifest.json").read_text())
    assert entries["skipped"][1] == {"name": "source/photo.png", "reason": "binary"}


def test_file_names_need_not_be_utf8(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(5):
        (source / os.fsdecode(b"caf\xe9-%d.txt" % n)).write_text(f"text {n}\n" * 30)
    (source / os.fsdecode(b"\xff.bin")).write_bytes(b"\0")
    config = small_config(source, vocab_size=300)
    with pytest.warns(UserWarning, match="1 files are no text"):
        first = prepare(config, tmp_path / "prepared")
    assert first.manifest == prepare(config, tmp_path / "prepared").manifest
    assert first.manifest.skipped[0].name == os.fsdecode(b"source/\xff.bin")


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "photo.png").write_bytes(b"\x89PNG\0")
    (source / "blank.txt").write_text("\n\n")
    with (
        pytest.warns(UserWarning, match="1 files are no text"),
        pytest.raises(
            CorpusError, match=r"holds no text: 2 files were found in data\.paths and 1 skipped.*data\.stdlib"
        ),
    ):
        prepare(small_config(source), tmp_path / "prepared")
    assert content_of(tmp_path / "prepared") == {}


def test_damage_is_reported_and_deleting_mends_it(text_folder: Path, tmp_path: Path) -> None:
    config = small_config(text_folder, shard_tokens=40_000)
    prepare(config, tmp_path)
    whole = content_of(tmp_path)
    damaged = bytearray(whole["train-00001.bin"])
    damaged[-5] ^= 1
    (tmp_path / "train-00001.bin").write_bytes(damaged)
    with pytest.raises(ShardError, match=r"train-00001\.bin has been altered.*Delete it and run again"):
        prepare(config, tmp_path)
    (tmp_path / "train-00001.bin").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.bin is missing"):
        open_prepared(tmp_path)
    prepare(config, tmp_path)
    assert content_of(tmp_path) == whole
    (tmp_path / "manifest.json").write_bytes(whole["manifest.json"][:-100])
    with pytest.raises(ShardError, match=r"manifest\.json is damaged.*Delete it and run again"):
        prepare(config, tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ShardError, match="holds no prepared corpus"):
        open_prepared(tmp_path)
    prepare(config, tmp_path)
    assert content_of(tmp_path) == whole
    Tokenizer.train(["other"], vocab_size=600).save(tmp_path / "tokenizer")
    with pytest.raises(ShardError, match=r"is not the tokenizer that the shards were made with.*Delete"):
        open_prepared(tmp_path)


@pytest.mark.parametrize("num_writes", [0, 1, 2, 3, 4])
def test_a_full_disk_leaves_nothing_that_looks_whole(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    """The disk fills at one write after another; with room again, the result is as if nothing had happened."""
    config = small_config(text_folder)
    left = num_writes

    def fsync_on_a_full_disk(descriptor: int) -> None:
        nonlocal left
        if os.path.isfile(f"/proc/self/fd/{descriptor}"):  # noqa: PTH113
            if left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            left -= 1

    monkeypatch.setattr(os, "fsync", fsync_on_a_full_disk)
    with pytest.raises(StorageError, match=r"cannot write .*: the disk is full; free some space"):
        prepare(config, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "manifest.json").exists()
    assert not [name for name in content_of(tmp_path) if name.endswith(".partial")]
    with pytest.raises(ShardError, match="holds no prepared corpus"):
        open_prepared(tmp_path)
    prepare(config, tmp_path)
    prepare(config, tmp_path / "elsewhere")
    whole = content_of(tmp_path / "elsewhere")
    assert {name: content for name, content in content_of(tmp_path).items() if "elsewhere" not in name} == whole


def test_a_full_disk_while_reading(text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(self: Spool, document: Any) -> int:
        with disk_errors("write documents.partial"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "append", append)
    with pytest.raises(StorageError, match=r"cannot write documents\.partial"):
        prepare(small_config(text_folder), tmp_path)
    assert content_of(tmp_path) == {}


KILLED = """
import sys, pathlib
from chogori.data import DataConfig, prepare
import chogori.data.preparation  # so that the delay counts from the work, not from imports
print("ready", flush=True)
prepare(DataConfig(paths=(pathlib.Path(sys.argv[1]),), stdlib=False, vocab_size=600, heldout_share=0.2,
                   shard_tokens=40_000), pathlib.Path(sys.argv[2]))
"""


def test_kills_at_any_moment_change_nothing(prepared: PreparedData, text_folder: Path, tmp_path: Path) -> None:
    """SIGKILL after a growing, jittered delay, until one attempt lives; the folder then equals one never disturbed."""
    generator = random.Random(0)
    kills, delay_s = 0, 0.02
    while True:
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(text_folder), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            try:
                child.wait(delay_s * generator.uniform(0.7, 1.3))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        kills += 1
        delay_s *= 1.35
        if (tmp_path / "manifest.json").exists():  # killed after the last write, before its exit
            break
        with pytest.raises(ShardError):
            open_prepared(tmp_path)
    assert kills >= 3
    again = prepare(small_config(text_folder, shard_tokens=40_000), tmp_path)
    assert again.manifest == prepared.manifest
    assert content_of(tmp_path) == content_of(prepared.folder)
