"""Frames that are sent in one turn of an event loop leave in one write: one system call and one wake-up for all.

A turn is short, and nothing is waited for: what is queued is written before the loop looks for new input. Bounded: what
gathers goes out at once when it reaches GATHERED_BYTES; what the other side has not read waits in the kernel, up to
LOCAL_SOCKET_BYTES, so that the other side finds it all at once. Trusts: its caller for when the transport may be
written to. Never: reorders frames, or writes half of one.
"""

from __future__ import annotations

import asyncio
import socket

from sealgate.limits import LOCAL_SOCKET_BYTES
from sealgate.protocol.frames import Frame, encode_frame

GATHERED_BYTES = 64 * 1024  # what is gathered at most before it is written: as much as a socket's buffer takes at once


def widen(sock: socket.socket) -> None:
    """Let more than one large message be on its way. The kernel grants what it allows, and never refuses."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_SOCKET_BYTES)


class FrameWriter:
    """The sending side of one connection, used from the transport's event loop only."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes | memoryview] = []
        self._bytes = 0
        self.queued = 0
        """Bytes of all frames so far."""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            widen(sock)

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken yet, as far as this process knows."""
        return self._bytes + self._transport.get_write_buffer_size()

    def send(self, frame: Frame, body: bytes | memoryview = b"") -> None:
        """Queue a frame; nothing happens where the transport is closing. Raises DecodeError if it is too large."""
        if self._transport.is_closing():
            return
        header, body = encode_frame(frame, body)
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(header)
        if body:  # asyncio's own loop never gets rid of an empty part from Python 3.12 on (CPython issue 155888)
            self._parts.append(body)
        self._bytes += len(header) + len(body)
        self.queued += len(header) + len(body)
        if self._bytes >= GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is queued now."""
        parts, self._parts, self._bytes = self._parts, [], 0
        if parts and not self._transport.is_closing():
            self._transport.writelines(parts)
