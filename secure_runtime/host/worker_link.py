"""The host's end of the socketpair to one worker: hands over work, matches completions, notices when it goes wrong.

Trusts: the worker to speak frames; anything else ends the link, and everything in flight fails as `worker-protocol`.
Never: looks into a body. Bounded: the admission step limits how many requests are in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from sealgate.errors import DecodeError
from sealgate.protocol.frame_writer import FrameWriter
from sealgate.protocol.frames import (
    BootFailed,
    Cancel,
    Done,
    FrameReader,
    Grant,
    Hello,
    HostToWorker,
    KeysChanged,
    Work,
    WorkerToHost,
)
from secure_runtime.errors import WorkerGone
from secure_runtime.limits import LOOK_EVERY_S


@dataclass(frozen=True)
class Outcome:
    """A signed completion and the sealed response (empty when the gatekeeper refused)."""

    done: Done
    sealed_response: bytes


@dataclass(kw_only=True, slots=True)
class _Given:
    """Work that the worker has. Times by the event loop's clock; `hung_at` is None until it was cancelled."""

    future: asyncio.Future[Outcome] = field(kw_only=False)
    gone: asyncio.Event = field(kw_only=False)
    timeout_s: float
    grace_s: float
    late_at: float
    hung_at: float | None = None


class WorkerLink(asyncio.Protocol):
    """One connection to one worker process, used from the host's event loop only.

    `on_event` receives Hello, BootFailed and KeysChanged; `on_lost` is called once, after every request in flight has
    failed with WorkerGone.
    """

    def __init__(
        self, on_event: Callable[[Hello | BootFailed | KeysChanged], None], on_lost: Callable[[WorkerGone], None]
    ) -> None:
        self._on_event = on_event
        self._on_lost = on_lost
        self._reader = FrameReader(WorkerToHost)
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None
        self._waiting: dict[int, _Given] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._next_id = 1
        self._last_seq = 0  # of completions
        self._why: WorkerGone | None = None

    # asyncio.Protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._writer = FrameWriter(self._transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for frame, body in self._reader.feed(data):
                self._take(frame, body)
        except DecodeError as error:
            self.abort(WorkerGone(str(error), code="worker-protocol"))

    def _take(self, frame: Hello | BootFailed | KeysChanged | Done, body: bytes) -> None:
        if not isinstance(frame, Done):
            self._on_event(frame)
            return
        self._last_seq += 1
        if frame.id not in self._waiting or frame.completion.statement.seq != self._last_seq:
            raise DecodeError("the worker completed a request that it was not given, or skipped a number")
        future = self._waiting.pop(frame.id).future
        if not future.done():
            future.set_result(Outcome(frame, body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop, once."""
        why = self._why or WorkerGone("the worker ended")
        waiting, self._waiting = self._waiting, {}
        for given in waiting.values():
            if not given.future.done():
                given.future.set_exception(why)
        self._transport = self._writer = None
        self._on_lost(why)

    # For the host ----------------------------------------------------------------------------------------------------

    def abort(self, why: WorkerGone) -> None:
        """Close at once; everything in flight fails with `why`."""
        self._why = self._why or why
        if self._transport is not None:
            self._transport.abort()

    @property
    def in_flight(self) -> int:
        """Requests handed over and not yet completed."""
        return len(self._waiting)

    def send(self, frame: HostToWorker, body: bytes = b"") -> None:
        """Queue a frame; raises WorkerGone when there is no worker."""
        if self._transport is None or self._writer is None or self._transport.is_closing():
            raise WorkerGone("the worker ended")
        self._writer.send(frame, body)

    async def run(
        self, grant: Grant, body: bytes, *, media_type: str, gone: asyncio.Event, timeout_s: float, grace_s: float
    ) -> Outcome:
        """Give the worker one grant and wait for its end.

        When the caller is `gone`, or after `timeout_s`, the work is cancelled (a worker that has not begun drops it and
        says so); after `grace_s` more the worker counts as hung and the link is aborted.
        """
        frame_id, self._next_id = self._next_id, self._next_id + 1
        loop = asyncio.get_running_loop()
        late_at = loop.time() + timeout_s
        given = _Given(loop.create_future(), gone, timeout_s=timeout_s, grace_s=grace_s, late_at=late_at)
        self.send(Work(id=frame_id, grant=grant, media_type=media_type), body)
        self._waiting[frame_id] = given
        if self._looking is None:
            self._looking = loop.call_later(LOOK_EVERY_S, self._look, loop)
        return await given.future

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what nobody waits for any more, and notice a worker that hangs."""
        self._looking = None
        now = loop.time()
        for frame_id, given in list(self._waiting.items()):
            left = given.gone.is_set()
            if given.hung_at is None and (left or now >= given.late_at):
                # A caller who left early shortens nobody's time: the grace starts where the time-out would have been.
                given.hung_at = now + given.grace_s + (given.timeout_s if left else 0.0)
                with contextlib.suppress(WorkerGone):  # then it fails by itself
                    self.send(Cancel(id=frame_id))
            elif given.hung_at is not None and now >= given.hung_at:
                self.abort(WorkerGone("the worker did not answer in time", code="worker-hung"))
                return
        if self._waiting:
            self._looking = loop.call_later(LOOK_EVERY_S, self._look, loop)


async def connect(link: WorkerLink, sock: socket.socket) -> None:
    """Attach a link to the host's end of the socketpair."""
    sock.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)
