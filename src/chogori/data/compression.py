"""What general compressors make of the held-out text: the yardstick beside a model's bits per byte.

The documents are joined in the order of the held-out shards with nothing between and compressed as one stream, which
favours the compressors: they see all earlier documents, a model only its own.
"""

from __future__ import annotations

import lzma


def xz_bits_per_byte(content: bytes) -> float:
    """Bits for each byte of `content` under xz -9e, the container of about 60 bytes included."""
    return 8 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) / len(content)


def zstd_bits_per_byte(content: bytes) -> float | None:
    """The same under zstd -19; None when the package `zstandard` is not installed."""
    try:
        import zstandard  # optional: only this yardstick and .zst corpora need it
    except ImportError:
        return None
    return 8 * len(zstandard.ZstdCompressor(level=19).compress(content)) / len(content)
