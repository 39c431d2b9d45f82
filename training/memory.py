"""Tells glibc to keep freed memory instead of handing it back after every step.

Per-example gradients are large blocks that are freed and taken again each step; with glibc's usual thresholds each one
is mapped and unmapped, which made a step of an MLP 1.2 to 1.5 times slower in trials. Elsewhere this does nothing.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP = 1 << 30


def keep_freed_memory() -> None:
    """For a process that trains and then exits."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _KEEP)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEEP - 1)
