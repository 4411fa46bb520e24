"""Disk errors become StorageError with advice; replaced files are whole or untouched."""

import errno
import os

import pytest

from chogori.errors import StorageError
from chogori.train import storage
from chogori.train.storage import disk_errors, require_space, write_text_atomically


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(number):
    with pytest.raises(StorageError, match="cannot save it: the disk is full; free some space"), disk_errors("save it"):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_reported_by_native_code_is_named():
    with pytest.raises(StorageError, match="the disk is full"), disk_errors("save it"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_read_only_disk_is_named():
    advice = r"cannot save it: .*; choose a folder you may write to with --out"
    with pytest.raises(StorageError, match=advice), disk_errors("save it"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_other_errors_pass():
    with pytest.raises(KeyError), disk_errors("save it"):
        raise KeyError("x")


def test_missing_space_is_counted_before_writing(tmp_path):
    with pytest.raises(StorageError, match=r"cannot save it: it needs 1,000,000,000,000.0 MB and the disk of .* has"):
        require_space(tmp_path, 10**18, "save it")


def test_a_failed_replacement_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
