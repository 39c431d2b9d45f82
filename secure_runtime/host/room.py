"""Room in the host: so many requests, or bytes, at once, of one caller three quarters of that, whichever way it comes.

An answer may be much larger than its request, and it waits twice here: for its record to be durable, and for its
gateway to read it. What finds no room is not given out: its caller is told to come again, its record stands, and
nobody else's answer or connection suffers for it.

Trusts: its user to give back what it took. Never: holds an answer.
"""

from __future__ import annotations

from collections import deque

Owner = tuple[str, str]
"""Tenant and subject."""


class Room:
    """Counts. Used from the host's event loop only."""

    def __init__(self, most: int) -> None:
        self._held: dict[Owner, int] = {}
        self.taken = 0
        self.allow(most)

    def allow(self, most: int) -> None:
        """So much from here on; what is taken stays taken."""
        self._max = most
        self._share = most - most // 4

    def fits(self, owner: Owner, size: int) -> bool:
        """Whether there is room for so much."""
        return not size or (self.taken + size <= self._max and self._held.get(owner, 0) + size <= self._share)

    def take(self, owner: Owner, size: int) -> bool:
        """Whether there was room, which is now taken."""
        if not self.fits(owner, size):
            return False
        if size:
            self.taken += size
            self._held[owner] = self._held.get(owner, 0) + size
        return True

    def give_back(self, owner: Owner, size: int) -> None:
        """Of what was taken."""
        if not size:
            return
        self.taken -= size
        self._held[owner] -= size
        if not self._held[owner]:
            del self._held[owner]


class Unread:
    """The answers that one gateway has not read yet: they leave a connection in the order in which they were sent."""

    def __init__(self, bytes_max: int) -> None:
        self._room = Room(bytes_max)
        self._sent: deque[tuple[int, Owner, int]] = deque()  # where each ends, counted in all bytes of the connection

    def take(self, owner: Owner, size: int, *, read: int) -> bool:
        """Whether there is room for one more answer; `read` is how many bytes of the connection the gateway has."""
        while self._sent and self._sent[0][0] <= read:
            _, of, gone = self._sent.popleft()
            self._room.give_back(of, gone)
        return self._room.take(owner, size)

    def sent(self, owner: Owner, size: int, *, end: int) -> None:
        """What room was taken for was sent, and ends at this byte of the connection."""
        self._sent.append((end, owner, size))
