"""The administration socket: `sealgate policy apply` and the revoking commands tell the host here what they did.

One question on a connection, one answer, then it is closed. Who asks is what the kernel says (SO_PEERCRED), and stands
in the record as "uid:N". Trusts: the permissions of the socket (0600: the host's user and root) and the kernel's word.
Never: answers before the record is durable; waits or reads without a bound; shares a socket with gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path
from typing import Protocol

from sealgate.errors import DecodeError
from sealgate.local_socket import bind_local
from sealgate.protocol.administration import AdminToHost, HostToAdmin
from sealgate.protocol.frames import FrameReader, Refused, encode_frame
from secure_runtime.limits import ADMIN_QUESTION_S, MAX_ADMIN_CONNECTIONS, MAX_ADMIN_QUESTION

_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class Administered(Protocol):
    """What the host does for operators (secure_runtime.host.runtime)."""

    async def administer(self, frame: AdminToHost, *, by: str) -> HostToAdmin:
        """Do it and put it on record; `by` is who asks. Never raises for anything that an operator can cause."""
        ...

    def fault(self, error: Exception) -> None:
        """Tell the operator about an error that nobody expected: its type and place, never its text."""
        ...


class AdminServer:
    """Listens for operators. Owned by the host's event loop."""

    def __init__(self, service: Administered) -> None:
        self._service = service
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def listen(self, path: Path) -> None:
        """Bind the socket, 0600; a stale file of a dead host is replaced, a live one an error."""
        sock = bind_local(path, service="runtime")
        self._server = await asyncio.start_unix_server(self._begin, sock=sock, limit=MAX_ADMIN_QUESTION)

    async def close(self, *, drain_s: float) -> None:
        """Stop listening; what was asked may come to its answer within `drain_s`."""
        if self._server is not None:
            self._server.close()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=drain_s)
            for task in late:
                task.cancel()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._running) >= MAX_ADMIN_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: HostToAdmin = Refused(status=500, code="internal")
        try:
            asked = await asyncio.wait_for(_question(reader), ADMIN_QUESTION_S)
            by = f"uid:{_peer_uid(writer)}"
        except (DecodeError, OSError):  # a question that did not come in time is an OSError too
            writer.transport.abort()
            return
        try:
            answer = await self._service.administer(asked, by=by)
        except Exception as error:  # a fault of ours: the operator gets an answer, and its kind and place
            self._service.fault(error)
        with contextlib.suppress(OSError):
            writer.write(b"".join(encode_frame(answer)))
            writer.close()


async def _question(reader: asyncio.StreamReader) -> AdminToHost:
    """The one frame of a connection; raises DecodeError for anything else."""
    frames = FrameReader(AdminToHost)
    while data := await reader.read(MAX_ADMIN_QUESTION):
        for frame, body in frames.feed(data):
            if body or frames.pending:
                break
            asked: AdminToHost = frame
            return asked
        if frames.pending > MAX_ADMIN_QUESTION:
            break
    raise DecodeError("not one whole question")


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    sock = writer.get_extra_info("socket")
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)
