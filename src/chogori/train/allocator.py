"""Memory of a CPU training process: freed pages stay with the process instead of going back to the kernel."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

TOP_PAD_BYTES = 64 * 2**20
"""How much the heap grows at a time."""


def keep_freed_memory() -> bool:
    """Let the C library reuse large freed blocks; True where that is possible (glibc), False elsewhere.

    By default glibc maps every block above some megabytes afresh, and the kernel clears each page on first touch: a
    training step allocates the same large activations every time, and page faults took a fifth of it (measured, LOG
    2026-11-23). The process keeps its peak memory until it ends, so this is for programs that train, not for libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
