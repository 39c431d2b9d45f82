"""Failed authentication, counted: a flood of bad tokens must be visible and must not fill the log.

The first failure of a (reason, source, minute) is recorded at once, with count 1; the others of that minute become one
more record when it is over, or when the log closes. Reasons and sources beyond a bound are counted together. So a
minute adds at most two records per key, however many callers knock.

Trusts: nothing in the reason and source but their shape. Never: records tokens, addresses or names.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Protocol

from audit.limits import AUTH_FAILURE_KEYS, AUTH_FAILURE_SPAN_US
from sealgate.ambient import Clock, now_us
from sealgate.transparency.record import Record

_WORD = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")
_OTHER = "other"


class RecordSink(Protocol):
    """Where records go: an `AuditLog`."""

    def append(self, draft: Record, /) -> object: ...


class AuthFailures:
    """Counts of the running minute. `note` may be called from any thread; fields are guarded by `_lock`."""

    def __init__(self, log: RecordSink, clock: Clock = now_us) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._span = 0
        self._unwritten: dict[tuple[str, str], int] = {}  # failures of this minute after the first, per key

    def note(self, reason: str, source: str) -> None:
        """Count one failure. Never raises and never waits: what the log cannot take now is lost to the count only."""
        key = (_word(reason), _word(source))
        with self._lock:
            due = self._turn(self._clock())
            if key not in self._unwritten and len(self._unwritten) >= AUTH_FAILURE_KEYS:
                key = (_OTHER, _OTHER)
            first = key not in self._unwritten
            self._unwritten[key] = 0 if first else self._unwritten[key] + 1
            span = self._span
        self._write(due)
        if first:
            self._write([_record(key, 1, span)])

    def tick(self) -> None:
        """Write the counts of a minute that is over. Call it now and then, so that a quiet spell does not hold them."""
        with self._lock:
            due = self._turn(self._clock())
        self._write(due)

    def flush(self) -> None:
        """Write what is counted so far; call it before the log closes."""
        with self._lock:
            due = self._drain()
            self._span = 0
        self._write(due)

    def _turn(self, now: int) -> list[Record]:
        span = now // AUTH_FAILURE_SPAN_US
        if span == self._span:
            return []
        due = self._drain()
        self._span = span
        return due

    def _drain(self) -> list[Record]:
        due = [_record(key, count, self._span) for key, count in self._unwritten.items() if count]
        self._unwritten.clear()
        return due

    def _write(self, records: Iterable[Record]) -> None:
        for record in records:
            self._log.append(record)


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else _OTHER


def _record(key: tuple[str, str], count: int, span: int) -> Record:
    reason, source = key
    return Record(
        kind="auth.failed",
        outcome="refused",
        reason=reason,
        detail={"source": source, "count": str(count), "minute_us": str(span * AUTH_FAILURE_SPAN_US)},
    )
