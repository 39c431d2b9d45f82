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
from gateway.limits import MAX_BUFFERED_BODIES, PIECE, UNREAD_ALL, UNREAD_SHARE
from gateway.patience import Patience, Receive
from sealgate.limits import DEFAULT_MESSAGE
from sealgate.protocol.sizes import LIMIT_FIELD, sealed_size, tell_limit

_CLOSE = {"Connection": "close"}


class Slot:
    """The right to have one request under way, with the bytes that it holds: between `with` and its end."""

    __slots__ = ("_intake", "caller", "held")

    def __init__(self, intake: Intake, caller: Hashable) -> None:
        self._intake = intake
        self.caller = caller
        self.held = 0

    def __enter__(self) -> Slot:
        self._intake.let_in(self.caller)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._intake.let_out(self.caller, self.held)

    def require_room(self, count: int) -> None:
        """Raise Problem ("busy") for an answer that is more than this process holds for one caller, or for all: its
        record stands, and its caller comes again when it has read what it asked for."""
        self._intake.require_room(self.caller, count, but=self.held)

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

    __slots__ = ("_caller", "_count", "_intake")

    def __init__(self, intake: Intake, count: int, caller: Hashable) -> None:
        self._intake = intake
        self._count = count
        self._caller = caller

    def __enter__(self) -> None:
        self._intake.keep(self._caller, self._count)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._intake.keep(self._caller, -self._count)


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
        self._bytes_share = bytes_max - bytes_max // 4  # and room for bytes
        self._shares: dict[Hashable, int] = {}
        self._held: dict[Hashable, int] = {}  # bytes by caller
        self._counted = 0  # bytes of all, of each caller no more than its share
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
        self.keep(caller, -held)
        self._shares[caller] -= 1
        if not self._shares[caller]:
            del self._shares[caller]

    def answering(self, count: int, caller: Hashable = None) -> Answering:
        """Count the bytes of an answer while it is sent. It is paid for and not refused while there is memory for it
        (`Slot.require_room`): what comes after it is. A caller who does not read its answers is refused first: others
        are not, for what is beyond its share."""
        return Answering(self, count, caller)

    def hold(self, slot: Slot, count: int) -> None:
        """Count bytes that `slot` keeps until its end; raises Problem: "busy" when all bodies together are too much,
        "too-many-requests" when its caller's, with answers on their way, are three quarters of that."""
        if self._counted + count > self._bytes_max:
            raise Problem("busy")
        if slot.caller is not None and self._held.get(slot.caller, 0) + count > self._bytes_share:
            raise Problem("too-many-requests")
        self.keep(slot.caller, count)
        slot.held += count

    def require_room(self, caller: Hashable, count: int, *, but: int) -> None:
        """See `Slot.require_room`; `but` is what the caller is about to give back."""
        held = self._held.get(caller, 0) - but + count
        all_held = self.bytes - but + count
        if count > PIECE and (held > UNREAD_SHARE * self._bytes_max or all_held > UNREAD_ALL * self._bytes_max):
            raise Problem("busy")

    def keep(self, caller: Hashable, count: int) -> None:
        """So many bytes more; fewer, below zero."""
        self.bytes += count
        if caller is None:
            self._counted += count
            return
        before = self._held.pop(caller, 0)
        if before + count:
            self._held[caller] = before + count
        self._counted += min(before + count, self._bytes_share) - min(before, self._bytes_share)
