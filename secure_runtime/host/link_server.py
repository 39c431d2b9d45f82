"""The UNIX socket on which gateways reach the host. One connection per gateway process, requests multiplexed by id.

Trusts: the file system permissions of the socket (0600, or 0660 for one group) for who may connect. A gateway may drop
or delay, never more: what it says about callers is recorded as what it said. Never: decrypts, authenticates, decides.
Bounded: requests in flight per connection, and answers that it does not read: an answer too many is refused by itself.
A connection that breaks the protocol, or reads nothing at all, is closed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol, cast

from sealgate.errors import DecodeError
from sealgate.limits import MAX_FRAME_BODY
from sealgate.local_socket import bind_local
from sealgate.protocol.frame_writer import FrameWriter
from sealgate.protocol.frames import (
    Answer,
    AuditRead,
    AuthFailed,
    Cancel,
    Deny,
    EvidenceGiven,
    EvidenceWanted,
    FiguresGiven,
    FiguresTold,
    FiguresWanted,
    FrameReader,
    GatewayToHost,
    HostToGateway,
    Recorded,
    Refused,
    RuntimeState,
    Submit,
)
from secure_runtime.host.metrics import HostMetrics
from secure_runtime.host.room import Owner, Unread
from secure_runtime.limits import MAX_IN_FLIGHT_PER_GATEWAY, MAX_UNREAD_BYTES

Asked = Submit | Deny | AuditRead | EvidenceWanted | FiguresWanted
Reply = Answer | Refused | Recorded | EvidenceGiven | FiguresGiven


class Service(Protocol):
    """What the host does for gateways (secure_runtime.host.admission)."""

    async def answer(self, frame: Asked, body: bytes, gone: asyncio.Event) -> tuple[Reply, bytes]:
        """Answer one request; never raises for anything that a gateway can cause. `gone` is set when nobody waits
        for the answer any more."""
        ...

    def auth_failed(self, frame: AuthFailed) -> None:
        """Count a failed authentication."""
        ...

    def fault(self, error: Exception) -> None:
        """Tell the operator about an error that nobody expected: its type and place, never its text."""
        ...

    def state(self) -> RuntimeState:
        """What gateways are told on connect and at every change."""
        ...


class _GatewayConnection(asyncio.Protocol):
    """One gateway process."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._reader = FrameReader(GatewayToHost, body_max=server.body_max)
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None
        self._unread = Unread(MAX_UNREAD_BYTES - MAX_UNREAD_BYTES // 16)  # the rest is for what has no body
        self._gone: dict[int, asyncio.Event] = {}  # one per request in flight
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._writer = FrameWriter(self._transport)
        self._server.connections.add(self)
        self.send(self._server.service.state())

    def data_received(self, data: bytes) -> None:
        try:
            for frame, body in self._reader.feed(data):
                self._take(frame, body)
        except DecodeError:
            if self._transport is not None:
                self._transport.abort()

    def _take(self, frame: Asked | AuthFailed | FiguresTold | Cancel, body: bytes) -> None:
        if isinstance(frame, AuthFailed):
            self._server.service.auth_failed(frame)
        elif isinstance(frame, FiguresTold):
            if self._server.metrics is not None:
                self._server.metrics.told(self, body)
        elif isinstance(frame, Cancel):
            # Authorised work still comes to a recorded end; work that has not begun is dropped on the way there.
            if frame.id in self._gone:
                self._gone[frame.id].set()
        elif len(self._gone) >= MAX_IN_FLIGHT_PER_GATEWAY or frame.id in self._gone:
            raise DecodeError("too many requests in flight, or an id used twice")
        else:
            self._gone[frame.id] = asyncio.Event()
            task = self._loop.create_task(self._serve(frame, body))
            self._server.running.add(task)
            task.add_done_callback(self._server.running.discard)

    async def _serve(self, frame: Asked, body: bytes) -> None:
        reply: Reply = Refused(id=frame.id, status=500, code="internal")
        sealed = b""
        try:
            reply, sealed = await self._server.service.answer(frame, body, self._gone[frame.id])
        except Exception as error:  # a fault of ours: the caller gets an answer, the operator its kind and place
            self._server.service.fault(error)
        finally:
            if isinstance(reply, Answer) and isinstance(frame, Submit):
                self._send_answer(reply, sealed, (frame.caller.tenant, frame.caller.subject))
            else:
                self.send(reply, sealed)
            self._gone.pop(frame.id, None)

    def _send_answer(self, reply: Answer, sealed: bytes, owner: Owner) -> None:
        """What a gateway cannot take now is not given out. Its record stands, and its receipt is."""
        if self._writer is None:
            return
        read = self._writer.queued - self._writer.unsent
        if not self._unread.take(owner, len(sealed), read=read):
            self.send(no_room(reply))
            return
        self.send(reply, sealed)
        if self._writer is not None:
            self._unread.sent(owner, len(sealed), end=self._writer.queued)

    def send(self, frame: HostToGateway, body: bytes = b"") -> None:
        """Write a frame; a gateway that went away is not an error, one that stopped reading has gone away."""
        if self._transport is not None and self._writer is not None:
            self._writer.send(frame, body)
            if self._writer.unsent > MAX_UNREAD_BYTES:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._writer = None
        self._server.connections.discard(self)
        if self._server.metrics is not None:
            self._server.metrics.gone(self)
        for gone in self._gone.values():
            gone.set()

    def close(self) -> None:
        """Write what is queued and close."""
        if self._transport is not None and self._writer is not None:
            self._writer.flush()
            self._transport.close()


def no_room(reply: Answer) -> Refused:
    """The refusal that takes the place of an answer."""
    return Refused(
        id=reply.id,
        status=503,
        code="busy",
        log=reply.log,
        record=reply.record,
        receipt=reply.receipt,
        cose_receipt=reply.cose_receipt,
        retry_after_s=1,
    )


class LinkServer:
    """Listens, and tells every connected gateway about changes. Owned by the host's event loop."""

    def __init__(self, service: Service, *, metrics: HostMetrics | None = None, body_max: int = MAX_FRAME_BODY) -> None:
        self.body_max = body_max
        self.service = service
        self.metrics = metrics
        self.connections: set[_GatewayConnection] = set()
        self.running: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path, *, group: str) -> None:
        """Bind the socket, 0600 or 0660 for `group`; a stale file of a dead host is replaced, a live one an error."""
        sock = bind_local(path, group=group, setting="runtime.socket_group", service="runtime")
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _GatewayConnection(self), sock=sock, backlog=128
        )

    def broadcast(self) -> None:
        """Tell every gateway the state of now."""
        state = self.service.state()
        for connection in self.connections:
            connection.send(state)

    async def close(self, *, drain_s: float) -> None:
        """Stop accepting, let what runs come to its end within `drain_s`, close the connections."""
        if self._server is not None:
            self._server.close()
        if self.running:
            await asyncio.wait(self.running, timeout=drain_s)
        for connection in list(self.connections):
            connection.close()
