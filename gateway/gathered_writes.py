"""What is written to a connection in one turn of the event loop leaves together: an answer's head with its body.

uvicorn writes the two one after the other: two system calls, two TLS records, two wake-ups of whoever reads. Everything
that is written to a connection has to pass here, so nothing overtakes anything. Bounded: what gathers goes out at once
when it reaches GATHERED_ANSWER. Trusts nothing. Never: reorders bytes, or keeps any past the turn.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.limits import GATHERED_ANSWER


class GatheredWrites:
    """A transport that writes once a turn. Everything but writing and closing is the real transport's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._bytes = 0
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        """Queue it for the end of this turn."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes >= GATHERED_ANSWER:
            self.flush()

    def flush(self) -> None:
        """Write what is queued now."""
        parts, self._parts, self._bytes = self._parts, [], 0
        if parts and not self._transport.is_closing():  # a peer that has gone takes nothing
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        """Write what is queued, and close when the peer has taken it."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
