"""A process that ends with its parent (Linux, `PR_SET_PDEATHSIG`), however its parent ends.

Never: outlives a parent that was killed while it still holds the listening socket.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    """From now on SIGTERM comes when the parent's thread that started this process ends. Safe between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end_with(parent: int) -> None:
    """The same for a child that already runs, whose parent was the process `parent`: it may be gone by now."""
    end_with_parent()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
