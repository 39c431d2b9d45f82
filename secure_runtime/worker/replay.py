"""Which sealed requests were already opened under one key. Lives and dies with the key.

A bounded set of hashes of `enc` values. A full set refuses: forgetting an entry would let its request be replayed.
Trusts: that equal `enc` bytes mean the same sealed request (RFC 9180: a fresh encapsulation each time). Never: evicts.
"""

from __future__ import annotations

import hashlib

from secure_runtime.errors import TurnedAway


class ReplaySet:
    """Owned by the worker's only thread; no locking."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[bytes] = set()

    @staticmethod
    def _mark(enc: bytes) -> bytes:
        return hashlib.sha256(enc).digest()[:16]

    def require_new(self, enc: bytes) -> None:
        """Raise TurnedAway if `enc` was used, or if there is no room to remember it."""
        if self._mark(enc) in self._seen:
            raise TurnedAway("replayed")
        if len(self._seen) >= self._limit:
            raise TurnedAway("replay-set-full", problem="busy")

    def remember(self, enc: bytes) -> None:
        """Call once the request opened: garbage under a copied `enc` must not burn the true request."""
        self._seen.add(self._mark(enc))

    def forget(self, enc: bytes) -> None:
        """Take back what was remembered ahead of opening, because it did not open."""
        self._seen.discard(self._mark(enc))

    def __len__(self) -> int:
        return len(self._seen)
