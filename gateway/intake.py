"""What may come in at once: requests, and bytes of their bodies. And for how long, and for whom.

A body is counted as it arrives and refused at the first byte too many, before it is kept; a sender that is too slow is
dropped; a caller that goes away stops what was being done for it. Trusts: nobody. Never: queues a request that does not
fit: it is refused at once with Retry-After, so that callers, not this process, hold the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, TypeVar

from gateway.errors import CallerGone, Problem
from gateway.limits import MAX_BUFFERED_BODIES, WATCH_AFTER_S
from sealgate.limits import DEFAULT_MESSAGE
from sealgate.protocol.sizes import LIMIT_FIELD, sealed_size, tell_limit

Receive = Callable[[], Awaitable[Any]]
_T = TypeVar("_T")
_CLOSE = {"Connection": "close"}


class Slot:
    """The right to have one request under way, with the bytes that it holds."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.held = 0

    async def read_body(self, receive: Receive, *, declared: str | None, limit: int | None = None) -> bytes:
        """The whole body; `declared` is the Content-Length field. Raises Problem or CallerGone."""
        limit = self._intake.body_max if limit is None else limit
        if declared is not None and (not declared.isdecimal() or len(declared) > 18):
            raise Problem("malformed-request", headers=_CLOSE)
        if declared is not None and int(declared) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._intake.body_timeout_s):
                return await self._collect(receive, limit)
        except TimeoutError:
            raise Problem("too-slow", headers=_CLOSE) from None

    async def _collect(self, receive: Receive, limit: int) -> bytes:
        body = BytesIO()  # which hands out what it holds without a copy
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise CallerGone
            part = message.get("body", b"")
            if body.tell() + len(part) > limit:
                raise _too_large(limit)
            self._intake.hold(self, len(part))
            body.write(part)
            more = message.get("more_body", False)
        return body.getvalue()


def _too_large(limit: int) -> Problem:
    return Problem("too-large", headers={LIMIT_FIELD: tell_limit(limit)})


class Intake:
    """Counts what is under way. One for each kind of work, used from the event loop only."""

    def __init__(
        self,
        *,
        requests_max: int,
        body_timeout_s: float = 20.0,
        bytes_max: int = MAX_BUFFERED_BODIES,
        body_max: int = sealed_size(DEFAULT_MESSAGE),
    ) -> None:
        self.body_timeout_s = body_timeout_s
        self.body_max = body_max
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._share_max = requests_max - requests_max // 4  # of one caller: the others always find a place
        self._shares: dict[Hashable, int] = {}
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def slot(self, caller: Hashable = None) -> Iterator[Slot]:
        """A place for one request. Raises Problem: "busy" when there is none, "too-many-requests" when `caller` (where
        one is named) holds three quarters of all places already."""
        if self.requests >= self._requests_max:
            raise Problem("busy")
        share = self._shares.get(caller, 0)
        if caller is not None and share >= self._share_max:
            raise Problem("too-many-requests")
        slot = Slot(self)
        self.requests += 1
        self._shares[caller] = share + 1
        try:
            yield slot
        finally:
            self.requests -= 1
            self.bytes -= slot.held
            self._shares[caller] -= 1
            if not self._shares[caller]:
                del self._shares[caller]

    @contextmanager
    def answering(self, count: int) -> Iterator[None]:
        """Count the bytes of an answer while it is sent. It is paid for and not refused: what comes after it is."""
        self.bytes += count
        try:
            yield
        finally:
            self.bytes -= count

    def hold(self, slot: Slot, count: int) -> None:
        """Count bytes that `slot` keeps until its end; raises Problem("busy") when all bodies together are too much."""
        if self.bytes + count > self._bytes_max:
            raise Problem("busy")
        self.bytes += count
        slot.held += count


async def while_awaited(receive: Receive, work: Coroutine[Any, Any, _T], *, timeout_s: float) -> _T:
    """The result of `work`, which is cancelled when the caller goes away (CallerGone) or time is up (Problem).

    Whether the caller is still there is looked at from WATCH_AFTER_S on: most work is done by then, and a task beside
    each of them would cost more than they leave undone. `work` runs in the caller's task: nothing is handed over.
    """
    loop = asyncio.get_running_loop()
    watch = _Watch(receive, ends_at=loop.time() + timeout_s)
    begin = loop.call_later(min(WATCH_AFTER_S, timeout_s), watch.begin)
    try:
        async with asyncio.timeout(None) as watch.limit:  # `begin` sets it: one timer serves both
            return await work
    except TimeoutError:
        if not watch.limit.expired():
            raise
        raise CallerGone if watch.gone else Problem("timed-out") from None
    finally:
        begin.cancel()
        watch.end()


class _Watch:
    """Brings the time limit forward to now when the caller goes away."""

    limit: asyncio.Timeout

    def __init__(self, receive: Receive, *, ends_at: float) -> None:
        self._receive = receive
        self._ends_at = ends_at
        self._task: asyncio.Task[None] | None = None
        self.gone = False

    def begin(self) -> None:
        self.limit.reschedule(self._ends_at)
        self._task = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if not self.limit.expired():
            self.limit.reschedule(0)

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
