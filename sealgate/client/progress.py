"""A progress bar on standard error, for whoever waits at a terminal. Anywhere else it is not there at all.

Trusts nothing that it shows: only numbers and a word of ours. Never: writes to standard output, or to what is no
terminal; more often than a person can read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from sealgate.ambient import monotonic_ns

_WIDTH = 28
_EVERY_NS = 100_000_000
_CLEAR = "\r\x1b[K"


class ProgressBar:
    """How much of a known number is done. Used as a context; what it drew is gone at the end."""

    def __init__(
        self,
        total: int,
        *,
        unit: str,
        start: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._total, self._done, self._start, self._unit = max(total, 1), start, start, unit
        self._clock = clock
        self._began = clock()
        self._drawn = self._began - _EVERY_NS

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done = min(self._done + count, self._total)
        now = self._clock()
        if self._shown and now - self._drawn >= _EVERY_NS:
            self._drawn = now
            self._stream.write(_CLEAR + self._line(now))
            self._stream.flush()

    def _line(self, now: int) -> str:
        filled = self._done * _WIDTH // self._total
        rate = (self._done - self._start) * 1_000_000_000 // max(now - self._began, 1)
        left = f", {_duration((self._total - self._done) // rate)} left" if rate else ""
        bar = "#" * filled + "." * (_WIDTH - filled)
        percent = self._done * 100 // self._total
        return f"[{bar}] {percent:3d}%  {self._done:,} of {self._total:,} {self._unit}, {rate:,}/s{left}"

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._stream.write(_CLEAR)
            self._stream.flush()


def _duration(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h {seconds % 3600 // 60} min"
