"""How glibc, where it is the allocator, returns freed memory to the system."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3
"""From malloc.h."""

MAPPED_BYTES = 1 << 20
"""Larger pieces are mapped each by itself."""


def map_matrices() -> None:
    """Have glibc map large pieces of memory, so that they return to the system when freed.

    By default it raises the threshold to the largest piece that was freed, up to 32 MB. Matrices
    below it then lie in heaps, which keep what is freed between others: that was two fifths of a
    worker's peak. Mapping costs time, a quarter of the calibration of a small model.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(M_MMAP_THRESHOLD, MAPPED_BYTES)


def return_free_memory() -> None:
    """Have glibc return free pages of its heaps, which it keeps otherwise."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
