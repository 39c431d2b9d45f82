"""What may come in at once: requests, and bytes of their bodies. And for how long, and for whom.

A body is counted as it arrives and refused at the first byte too many, before it is kept; a sender that is too slow is
dropped. Trusts: nobody. Never: queues a request that does not fit: it is refused at once with Retry-After, so that
callers, not this process, hold the queue.
"""

from __future__ import annotations

from collections.abc import Hashable
from io import BytesIO
from types import TracebackType

from gateway.errors import CallerGone, Problem
from gateway.limits import MAX_BUFFERED_BODIES
from gateway.patience import Patience, Receive
from sealgate.limits import DEFAULT_MESSAGE
from sealgate.protocol.sizes import LIMIT_FIELD, sealed_size, tell_limit

_CLOSE = {"Connection": "close"}


class Slot:
    """The right to have one request under way, with the bytes that it holds: between `with` and its end."""

    __slots__ = ("_caller", "_intake", "held")

    def __init__(self, intake: Intake, caller: Hashable) -> None:
        self._intake = intake
        self._caller = caller
        self.held = 0

    def __enter__(self) -> Slot:
        self._intake.let_in(self._caller)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._intake.let_out(self._caller, self.held)

    async def read_body(self, receive: Receive, *, declared: str | None, limit: int | None = None) -> bytes:
        """The whole body; `declared` is the Content-Length field. Raises Problem or CallerGone."""
        limit = self._intake.body_max if limit is None else limit
        if declared is not None and (not declared.isdecimal() or len(declared) > 18):
            raise Problem("malformed-request", headers=_CLOSE)
        if declared is not None and int(declared) > limit:
            raise _too_large(limit)
        try:
            with self._intake.patience.limit(self._intake.body_timeout_s):
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


class Answering:
    """The bytes of an answer, counted while it is sent."""

    __slots__ = ("_count", "_intake")

    def __init__(self, intake: Intake, count: int) -> None:
        self._intake = intake
        self._count = count

    def __enter__(self) -> None:
        self._intake.bytes += self._count

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._intake.bytes -= self._count


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
        self.patience = Patience()
        self.requests = 0
        self.bytes = 0

    def slot(self, caller: Hashable = None) -> Slot:
        """A place for one request. To enter it raises Problem: "busy" when there is none, "too-many-requests" when
        `caller` (where one is named) holds three quarters of all places already."""
        return Slot(self, caller)

    def let_in(self, caller: Hashable) -> None:
        """Count a request; see `slot`."""
        if self.requests >= self._requests_max:
            raise Problem("busy")
        share = self._shares.get(caller, 0)
        if caller is not None and share >= self._share_max:
            raise Problem("too-many-requests")
        self.requests += 1
        self._shares[caller] = share + 1

    def let_out(self, caller: Hashable, held: int) -> None:
        """A request is over, and what it held is gone."""
        self.requests -= 1
        self.bytes -= held
        self._shares[caller] -= 1
        if not self._shares[caller]:
            del self._shares[caller]

    def answering(self, count: int) -> Answering:
        """Count the bytes of an answer while it is sent. It is paid for and not refused: what comes after it is."""
        return Answering(self, count)

    def hold(self, slot: Slot, count: int) -> None:
        """Count bytes that `slot` keeps until its end; raises Problem("busy") when all bodies together are too much."""
        if self.bytes + count > self._bytes_max:
            raise Problem("busy")
        self.bytes += count
        slot.held += count
