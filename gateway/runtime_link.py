"""The gateway's end of the UNIX socket to the runtime host: many requests on one connection, told apart by id.

Connects by itself, and again whenever the host goes away. Holds the newest `RuntimeState`; while there is none, every
request fails at once with RuntimeAway. A request that is in flight when the connection ends fails too: whether the
host carried it out is in the log, not here.

Trusts: the host at the other end (the socket's file permissions). Never: repeats a request, opens what it carries, or
holds more than MAX_OUTSTANDING requests and MAX_LINK_BUFFER bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from gateway.errors import RuntimeAway, RuntimeBusy
from gateway.limits import (
    MAX_LINK_BUFFER,
    MAX_LINK_NOTICES,
    MAX_OUTSTANDING,
    RECONNECT_FIRST_S,
    RECONNECT_MAX_S,
)
from gateway.telemetry import Telemetry, quoted
from sealgate.deployment import socket_address
from sealgate.errors import DecodeError
from sealgate.protocol.frame_writer import FrameWriter
from sealgate.protocol.frames import (
    Answer,
    AuditRead,
    AuthFailed,
    Caller,
    Cancel,
    Deny,
    EvidenceGiven,
    EvidenceWanted,
    FiguresGiven,
    FiguresTold,
    FiguresWanted,
    Frame,
    FrameReader,
    HostToGateway,
    ModelFacts,
    Recorded,
    Refused,
    RuntimeState,
    Submit,
)

_F = TypeVar("_F", bound=Frame)
_Reply = tuple[Any, bytes]


class RuntimeLink:
    """One per gateway process, owned by its event loop.

    `_waiting` are requests whose answer somebody awaits; `_abandoned` are ids that were cancelled and that the host has
    not answered yet (it always does): they still count, because the host still works on them; and against their caller,
    who has three quarters of all at most.
    """

    def __init__(
        self,
        path: Path,
        *,
        telemetry: Telemetry,
        on_state: Callable[[RuntimeState], None] = lambda _: None,
        outstanding_max: int = MAX_OUTSTANDING,
    ) -> None:
        """`on_state` is called with every state that the host tells, before any answer that follows it."""
        self._path = path
        self._on_state = on_state
        self._telemetry = telemetry
        self._outstanding_max = outstanding_max
        self._share_max = outstanding_max - outstanding_max // 4
        self._callers: dict[int, Caller] = {}  # of `_waiting` and `_abandoned`, where there is one
        self._shares: dict[tuple[str, str], int] = {}  # by tenant and subject
        self._connection: _Connection | None = None
        self._waiting: dict[int, asyncio.Future[_Reply]] = {}
        self._abandoned: set[int] = set()
        self._last_id = 0
        self._dropped = 0
        self._state: RuntimeState | None = None
        self._versions: dict[str, tuple[ModelFacts, ...]] = {}  # of `_state`, by name
        self._keeper: asyncio.Task[None] | None = None

    # Life -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, and keep the connection up until `close`."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep_connected())

    async def close(self) -> None:
        """Close the connection; what is in flight fails."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    async def _keep_connected(self) -> None:
        delay_s = RECONNECT_FIRST_S
        while True:
            try:
                connection = await self._connect()
            except OSError:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RECONNECT_MAX_S)
                continue
            delay_s = RECONNECT_FIRST_S
            try:
                await connection.lost.wait()
            finally:
                connection.abort()
                self._forget_connection()
            self._telemetry.event("runtime-away")
            await asyncio.sleep(delay_s)

    async def _connect(self) -> _Connection:
        connection = _Connection(self._take)
        with socket_address(self._path) as address:
            await asyncio.get_running_loop().create_unix_connection(lambda: connection, address)
        return connection

    def _forget_connection(self) -> None:
        self._connection, self._state = None, None
        self._abandoned.clear()
        self._callers.clear()
        self._shares.clear()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(RuntimeAway("the runtime went away before it answered"))
        self._waiting.clear()

    # What the host says -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> RuntimeState:
        """The newest state that the host told; raises RuntimeAway while there is none."""
        if self._state is None:
            raise RuntimeAway("the runtime cannot be reached")
        return self._state

    def versions(self, model: str) -> tuple[ModelFacts, ...]:
        """Every version of a model that the newest state has; raises RuntimeAway while there is none."""
        return self._versions.get(model, ()) if self.state.models else ()

    def _take(self, connection: _Connection, frame: Any, body: bytes) -> None:
        if isinstance(frame, RuntimeState):
            if self._state is None or frame.ready != self._state.ready:
                self._telemetry.event("runtime-state", ready=frame.ready, detail=quoted(frame.detail))
            self._connection, self._state = connection, frame
            self._versions = {
                name: tuple(one for one in frame.models if one.name == name)
                for name in dict.fromkeys(one.name for one in frame.models)
            }
            self._on_state(frame)
            return
        self._abandoned.discard(frame.id)
        self._let_go(frame.id)
        waiting = self._waiting.pop(frame.id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result((frame, body))

    # What the gateway asks --------------------------------------------------------------------------------------------

    async def submit(self, frame: Submit, body: bytes) -> tuple[Answer | Refused, bytes]:
        """Steps 6 to 10 happen on the other side. Cancelling this call tells the host that nobody waits any more."""
        return await self._ask(frame, body, expected=(Answer, Refused))

    async def deny(self, frame: Deny) -> Recorded | Refused:
        """Record a refusal by the policy; `Recorded` once it is durable."""
        return (await self._ask(frame, b"", expected=(Recorded, Refused)))[0]  # type: ignore[no-any-return]

    async def record_audit_read(self, frame: AuditRead) -> Recorded | Refused:
        """Record that an auditor is about to read; `Recorded` once it is durable."""
        return (await self._ask(frame, b"", expected=(Recorded, Refused)))[0]  # type: ignore[no-any-return]

    async def evidence(self, nonce: bytes, *, model: str = "") -> bytes:
        """The runtime's evidence over `nonce`, of a worker that serves `model` where one is named. Raises RuntimeAway
        if it has none to give."""
        wanted = EvidenceWanted(nonce=nonce, model=model)
        reply, body = await self._ask(wanted, b"", expected=(EvidenceGiven, Refused))
        if isinstance(reply, Refused):
            raise RuntimeAway("the runtime has no evidence to give")
        return body

    @property
    def connected(self) -> bool:
        """Whether there is a host to tell."""
        return self._connection is not None

    def tell_figures(self, body: bytes) -> None:
        """Tell the host what this process has counted since it told last."""
        if self._connection is not None:
            self._connection.send(FiguresTold(), body)

    async def figures(self) -> bytes:
        """The figures of the whole deployment. Raises RuntimeAway if the host keeps none."""
        reply, body = await self._ask(FiguresWanted(), b"", expected=(FiguresGiven, Refused))
        if isinstance(reply, Refused):
            raise RuntimeAway("the runtime keeps no figures")
        return body

    def auth_failed(self, frame: AuthFailed) -> None:
        """Tell the host of a failed authentication, if there is room: a flood must not crowd out requests."""
        connection = self._connection
        if connection is None or connection.unsent > MAX_LINK_NOTICES:
            self._dropped += 1
            return
        if self._dropped:
            self._telemetry.event("notices-dropped", count=self._dropped)
            self._dropped = 0
        connection.send(frame)

    async def _ask(self, frame: _F, body: bytes, *, expected: tuple[type[Frame], ...]) -> _Reply:
        connection = self._connection
        if connection is None:
            raise RuntimeAway("the runtime cannot be reached")
        if len(self._waiting) + len(self._abandoned) >= self._outstanding_max:
            raise RuntimeBusy("too many requests are in flight to the runtime")
        caller: Caller | None = getattr(frame, "caller", None)
        if caller is not None and self._shares.get((caller.tenant, caller.subject), 0) >= self._share_max:
            raise RuntimeBusy("too many requests of one caller are in flight to the runtime")
        if connection.unsent + len(body) > MAX_LINK_BUFFER:
            raise RuntimeBusy("the runtime takes requests too slowly")
        self._last_id += 1
        number = self._last_id
        connection.send(_numbered(frame, number), body)
        waiting: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        if caller is not None:
            self._callers[number] = caller
            self._shares[caller.tenant, caller.subject] = self._shares.get((caller.tenant, caller.subject), 0) + 1
        try:
            reply, answer = await waiting
        except asyncio.CancelledError:
            if self._waiting.pop(number, None) is not None and self._connection is connection:
                self._abandoned.add(number)
                connection.send(Cancel(id=number))
            raise
        if not isinstance(reply, expected):
            connection.abort()
            raise RuntimeAway("the runtime answered out of turn")
        return reply, answer

    def _let_go(self, number: int) -> None:
        """The host has answered: it is nobody's any more."""
        caller = self._callers.pop(number, None)
        if caller is not None:
            name = caller.tenant, caller.subject
            self._shares[name] -= 1
            if not self._shares[name]:
                del self._shares[name]


def _numbered(frame: _F, number: int) -> _F:
    return msgspec.structs.replace(frame, id=number)


class _Connection(asyncio.Protocol):
    """One connection; `lost` is set when it ended."""

    def __init__(self, take: Callable[[_Connection, Any, bytes], None]) -> None:
        self.lost = asyncio.Event()
        self._take = take
        self._reader = FrameReader(HostToGateway)
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._writer = FrameWriter(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame, body in self._reader.feed(data):
                self._take(self, frame, body)
        except DecodeError:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._writer = None
        self.lost.set()

    @property
    def unsent(self) -> int:
        """Bytes that the host has not taken yet."""
        return self._writer.unsent if self._writer is not None else 0

    def send(self, frame: Frame, body: bytes = b"") -> None:
        if self._writer is not None:
            self._writer.send(frame, body)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
