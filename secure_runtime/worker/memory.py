"""How much memory the worker has taken: what its allocator holds, and the most that was ever resident.

Inside the sandbox there is no /proc to read, so the C library is asked (mallinfo2, glibc 2.33) and the kernel
(getrusage). A model's need is what grew while it was loaded and warmed up: by the allocator's word, or the growth of
the peak where that is more. It is a measurement, not a bound: what bounds a worker is its limit of memory.

Trusts: the C library's own account. Never: opens a file.
"""

from __future__ import annotations

import ctypes
import resource
from dataclasses import dataclass

_FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class _MallInfo2(ctypes.Structure):
    """struct mallinfo2 of mallinfo(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def _allocator() -> ctypes.CDLL | None:
    """The C library, if it can tell; looked up while a library can still be opened."""
    library = ctypes.CDLL(None)
    try:
        library.mallinfo2.restype = _MallInfo2
    except AttributeError:
        return None
    return library


_LIBRARY = _allocator()


@dataclass(frozen=True)
class MemoryUsed:
    """Bytes at one moment."""

    held: int  # by the allocator, in use
    peak: int  # resident at most, so far

    def since(self, before: MemoryUsed) -> int:
        """How much more than before."""
        return max(0, self.held - before.held, self.peak - before.peak)


def memory_used() -> MemoryUsed:
    """What this process has taken."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if _LIBRARY is None:
        return MemoryUsed(held=0, peak=peak)
    said = _LIBRARY.mallinfo2()
    return MemoryUsed(held=said.uordblks + said.hblkhd, peak=peak)
