"""The keys that issuers verify with now: from a file for good, or fetched, kept fresh in the background, and let go.

A fetched set is renewed before it is stale. If that fails the old one serves for `stale_s` more, then nothing of the
issuer verifies until it is back: an issuer that cannot be asked may have withdrawn a key. A set that came replaces the
old one at once and as a whole, so a withdrawn key ends with it, and the tokens that it signed too. A key id that is
not in the set makes one refresh, in one flight for all who ask, and the next not before the cool-down is over: a flood
of invented ids costs the issuer one request in that time.

Trusts: the fetcher's word for where bytes came from, and the clock. Never: waits for an issuer at start, mixes keys of
two issuers or two sets, or holds up a caller whose key is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import jwt

from gateway.authentication.discovery import FetchedKeys, FetchFailed, KeyFetcher
from gateway.authentication.issuers import Issuer
from gateway.authentication.jwks import Keys, UnfitKeySet, parse_jwks
from gateway.errors import Unauthenticated
from gateway.limits import MAX_KEY_WAITERS, REFRESH_AHEAD, REFRESH_RETRY_FIRST_S, REFRESH_RETRY_MAX_S
from sealgate.ambient import Clock, Entropy, now_us, random_bytes

Report = Callable[[str], None]
"""Takes one line for the operator's log."""

Pause = Callable[[float], Awaitable[object]]
"""Waits that many seconds."""


class Fetcher(Protocol):
    """Where a key set comes from. `fetch` raises FetchFailed and nothing else."""

    async def fetch(self) -> FetchedKeys: ...

    async def close(self) -> None: ...


class KeySet(Protocol):
    """The keys of one issuer."""

    def usable(self, now: int) -> Keys:
        """The keys that count at this moment; none if there are none. Costs nothing, so it is asked every time."""

    async def find(self, kid: str) -> jwt.PyJWK:
        """The key of that name, after at most one refresh. Raises Unauthenticated."""


class FixedKeySet:
    """Keys that were read at start."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def usable(self, now: int) -> Keys:
        return self._keys

    async def find(self, kid: str) -> jwt.PyJWK:
        key = self._keys.get(kid)
        if key is None:
            raise Unauthenticated("key-unknown")
        return key


class FetchedKeySet:
    """Keys that are fetched. Everything here belongs to one event loop; there is no lock, only one flight."""

    def __init__(
        self,
        issuer: Issuer,
        fetcher: Fetcher,
        *,
        report: Report,
        clock: Clock = now_us,
        pause: Pause = asyncio.sleep,
        entropy: Entropy = random_bytes,
    ) -> None:
        if issuer.remote is None:
            raise ValueError("this issuer's keys are not fetched")
        self._issuer = issuer
        self._remote = issuer.remote
        self._fetcher = fetcher
        self._report = report
        self._clock = clock
        self._pause = pause
        self._entropy = entropy
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fresh_s = 0
        self._stale_from_us = 0
        self._until_us = 0
        self._asked_us: int | None = None  # when an unknown key id last made a refresh
        self._waiting = 0
        self._flight: asyncio.Task[bool] | None = None
        self._background: asyncio.Task[None] | None = None

    # Asking -----------------------------------------------------------------------------------------------------------

    def usable(self, now: int) -> Keys:
        return self._keys if now < self._until_us else {}

    async def find(self, kid: str) -> jwt.PyJWK:
        key = self.usable(self._clock()).get(kid)
        for _ in range(2):  # twice: the flight that was under way may have begun before the key was published
            if key is not None or not self._may_refresh():
                break
            self._waiting += 1
            try:
                await asyncio.shield(self._refreshing())
            finally:
                self._waiting -= 1
            key = self.usable(self._clock()).get(kid)
        if key is not None:
            return key
        if not self.usable(self._clock()):
            raise Unauthenticated("keys-unavailable")
        raise Unauthenticated("key-unknown")

    def detail(self) -> str:
        """What is wrong with these keys, for the readiness report; "" if nothing is."""
        now = self._clock()
        if now >= self._until_us:
            return f"issuer {self._issuer.name}: no keys yet" if not self._keys else f"{self._stale()}, too long"
        return self._stale() if now >= self._stale_from_us else ""

    def _stale(self) -> str:
        return f"issuer {self._issuer.name}: keys could not be renewed"

    def _may_refresh(self) -> bool:
        if self._waiting >= MAX_KEY_WAITERS:
            return False
        if self._flight is not None and not self._flight.done():
            return True  # one is on its way already
        now = self._clock()
        if self._asked_us is not None and 0 <= now - self._asked_us < self._remote.cooldown_s * 1_000_000:
            return False
        self._asked_us = now
        return True

    # Refreshing -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to keep the set fresh; returns at once."""
        self._background = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        for task in (self._background, self._flight):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._fetcher.close()

    async def _keep_fresh(self) -> None:
        retry_s = REFRESH_RETRY_FIRST_S
        while True:
            if await asyncio.shield(self._refreshing()):
                spread = 1 - self._entropy(1)[0] / 2560  # so that many gateways do not ask in the same second
                wait_s, retry_s = self._fresh_s * REFRESH_AHEAD * spread, REFRESH_RETRY_FIRST_S
            else:
                wait_s, retry_s = retry_s, min(retry_s * 2, REFRESH_RETRY_MAX_S)
            await self._pause(wait_s)

    def _refreshing(self) -> asyncio.Task[bool]:
        """The flight that is under way, or a new one."""
        if self._flight is None or self._flight.done():
            self._flight = asyncio.create_task(self._refresh())
        return self._flight

    async def _refresh(self) -> bool:
        """Whether a new set came. Whatever goes wrong is said to the operator and leaves the old set as it was."""
        try:
            fetched = await self._fetcher.fetch()
            keys = parse_jwks(fetched.data, algorithms=self._issuer.algorithms, where="the key set")
        except (FetchFailed, UnfitKeySet) as error:
            self._report(f"issuer {self._issuer.name}: {error}")
            return False
        except Exception as error:  # a fault of ours must not end the refreshing for good
            self._report(f"issuer {self._issuer.name}: {type(error).__name__}")
            return False
        now = self._clock()
        # A key that stays is the same object, so that what it verified stays remembered.
        self._keys = {kid: _same(self._keys.get(kid), key) for kid, key in keys.items()}
        self._fresh_s = fetched.fresh_s
        self._stale_from_us = now + fetched.fresh_s * 1_000_000
        self._until_us = self._stale_from_us + self._remote.stale_s * 1_000_000
        return True


def _same(old: jwt.PyJWK | None, new: jwt.PyJWK) -> jwt.PyJWK:
    if old is not None and old.algorithm_name == new.algorithm_name and old.key == new.key:
        return old
    return new


class KeySets:
    """The key sets of all issuers. One per process."""

    def __init__(
        self,
        issuers: Mapping[str, Issuer],
        *,
        clock: Clock = now_us,
        report: Report = lambda _: None,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._fetched: list[FetchedKeySet] = []
        self._of: dict[str, KeySet] = {}
        for issuer in issuers.values():
            if issuer.remote is None:
                self._of[issuer.name] = FixedKeySet(issuer.keys)
                continue
            fetcher = KeyFetcher(issuer.name, issuer.remote, clock=clock)
            fetched = FetchedKeySet(issuer, fetcher, report=report, clock=clock, pause=pause)
            self._of[issuer.name] = fetched
            self._fetched.append(fetched)

    def of(self, issuer: str) -> KeySet:
        """The keys of a configured issuer."""
        return self._of[issuer]

    def start(self) -> None:
        """Begin to fetch in the background. Needs the running event loop."""
        for key_set in self._fetched:
            key_set.start()

    async def close(self) -> None:
        await asyncio.gather(*(key_set.close() for key_set in self._fetched))

    def details(self) -> tuple[str, ...]:
        """What is wrong with whose keys, for people who watch readiness."""
        return tuple(filter(None, (key_set.detail() for key_set in self._fetched)))
