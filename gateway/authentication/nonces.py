"""Nonces that put the server's clock into proofs of possession (RFC 9449 sections 8 and 9), without any table of them.

A nonce is a keyed hash of the time window in which it was handed out. It counts in that window and in the next one, so
a proof cannot be made long before it is used, whatever the client's clock says. All processes that share the key share
the nonces. The key is kept where proofs are remembered (`gateway.authentication.proofs`) and is lost with them: a proof
that is not remembered any more carries no nonce that counts.

Trusts: the key and the clock. Never: tells one caller from another; everybody is handed the same nonce.
"""

from __future__ import annotations

import hashlib
import hmac

from gateway.limits import NONCE_WINDOW_S
from sealgate.ambient import Clock, now_us
from sealgate.protocol.dpop import to_base64url

_LABEL = b"sealgate dpop nonce v1\x00"
_WINDOW_US = NONCE_WINDOW_S * 1_000_000
_SIZE = 24


class Nonces:
    """One per process."""

    def __init__(self, key: bytes, *, clock: Clock = now_us) -> None:
        self._key = key
        self._clock = clock
        self._made: dict[int, str] = {}  # of the windows that were asked for last

    def current(self) -> str:
        """What clients are told to use now."""
        return self._of(self._clock() // _WINDOW_US)

    def counts(self, nonce: str) -> bool:
        """Whether it was handed out in this window or in the one before."""
        window = self._clock() // _WINDOW_US
        given = nonce.encode("utf-8")
        matches = [hmac.compare_digest(given, self._of(one).encode("ascii")) for one in (window, window - 1)]
        return any(matches)

    def _of(self, window: int) -> str:
        found = self._made.get(window)
        if found is None:
            digest = hmac.digest(self._key, _LABEL + window.to_bytes(8), hashlib.sha256)
            if len(self._made) >= 4:
                self._made.clear()
            found = self._made[window] = to_base64url(digest[:_SIZE])
        return found
