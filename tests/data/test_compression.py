"""The yardsticks against the command-line definition: size of the compressed stream, in bits, over the text's bytes."""

import lzma
import sys

import pytest
import zstandard

from chogori.data.compression import xz_bits_per_byte, zstd_bits_per_byte

TEXT = "".join(f"line {n}: {n * n} {n**3}\n" for n in range(3000)).encode()


def test_figures_are_sizes_of_streams_that_open_again() -> None:
    xz = lzma.compress(TEXT, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    assert lzma.decompress(xz) == TEXT
    assert xz_bits_per_byte(TEXT) == 8 * len(xz) / len(TEXT)
    zstd = zstandard.compress(TEXT, level=19)
    assert zstandard.decompress(zstd) == TEXT
    assert zstd_bits_per_byte(TEXT) == 8 * len(zstd) / len(TEXT)
    assert 0.5 < xz_bits_per_byte(TEXT) < 8


def test_zstd_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert zstd_bits_per_byte(TEXT) is None
