"""Frames of one turn leave together, in order, whole; and none is kept back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from sealgate.errors import DecodeError
from sealgate.limits import MAX_FRAME_BODY
from sealgate.protocol.frame_writer import GATHERED_BYTES, FrameWriter, widen
from sealgate.protocol.frames import Cancel, EvidenceWanted, FrameReader, GatewayToHost


class _Counted:
    """A real transport that counts its writes."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.writes = 0

    def writelines(self, parts: list[bytes]) -> None:
        self.writes += 1
        self.transport.writelines(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class _Pair:
    def __init__(self, counted: _Counted, there: socket.socket) -> None:
        self.counted = counted
        self.writer = FrameWriter(counted)  # type: ignore[arg-type]
        self.there = there
        self._reader = FrameReader(GatewayToHost)

    async def arrived(self, count: int) -> list[tuple[Any, bytes]]:
        frames: list[tuple[Any, bytes]] = []
        while len(frames) < count:
            frames += self._reader.feed(await asyncio.get_running_loop().sock_recv(self.there, 1 << 16))
        return frames


def _with_pair(test: Callable[[_Pair], Awaitable[None]], runner: Callable[[Any], None]) -> None:
    async def main() -> None:
        here, there = socket.socketpair()
        there.setblocking(False)
        here.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(asyncio.Protocol, sock=here)
        try:
            async with asyncio.timeout(60):
                await test(_Pair(_Counted(transport), there))
        finally:
            transport.abort()
            await asyncio.sleep(0)
            there.close()

    runner(main())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_frames_of_one_turn_leave_in_one_write_and_in_order(runner: Any) -> None:
    async def test(pair: _Pair) -> None:
        for number in range(50):
            pair.writer.send(EvidenceWanted(id=number, nonce=b"n"), b"%d" % number)
        assert pair.counted.writes == 0 < pair.writer.unsent
        got = await pair.arrived(50)
        assert [(frame.id, body) for frame, body in got] == [(number, b"%d" % number) for number in range(50)]
        assert pair.counted.writes == 1
        assert pair.writer.unsent == 0
        pair.writer.send(Cancel(id=99))  # and a later turn has a write of its own
        assert (await pair.arrived(1))[0][0].id == 99
        assert pair.counted.writes == 2

    _with_pair(test, runner)


def test_a_large_frame_does_not_wait_for_the_turn_to_end() -> None:
    async def test(pair: _Pair) -> None:
        pair.writer.send(Cancel(id=1))
        pair.writer.send(Cancel(id=2), b"x" * GATHERED_BYTES)
        assert pair.counted.writes == 1
        pair.writer.send(Cancel(id=3))
        assert [(frame.id, len(body)) for frame, body in await pair.arrived(3)] == [(1, 0), (2, GATHERED_BYTES), (3, 0)]

    _with_pair(test, asyncio.run)


def test_closing_after_a_flush_loses_nothing_and_later_frames_go_nowhere() -> None:
    async def test(pair: _Pair) -> None:
        pair.writer.send(Cancel(id=1))
        pair.writer.flush()
        pair.counted.transport.close()
        pair.writer.send(Cancel(id=2))
        assert [frame.id for frame, _ in await pair.arrived(1)] == [1]
        assert pair.counted.writes == 1

    _with_pair(test, asyncio.run)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_frames_without_bodies_leave_nothing_behind_that_keeps_a_connection_open(runner: Any) -> None:
    """An empty part would stay in asyncio's own transports for ever: a busy loop, and a close that never comes."""

    async def test(pair: _Pair) -> None:
        for number in range(3):
            pair.writer.send(Cancel(id=number))
        pair.writer.flush()
        pair.counted.transport.close()
        assert [frame.id for frame, _ in await pair.arrived(3)] == [0, 1, 2]
        assert await asyncio.get_running_loop().sock_recv(pair.there, 1) == b""

    _with_pair(test, runner)


def test_a_frame_that_is_too_large_leaves_the_others_alone() -> None:
    async def test(pair: _Pair) -> None:
        pair.writer.send(Cancel(id=1))
        with pytest.raises(DecodeError):
            pair.writer.send(Cancel(id=2), bytes(MAX_FRAME_BODY + 1))
        pair.writer.send(Cancel(id=3))
        assert [frame.id for frame, _ in await pair.arrived(2)] == [1, 3]

    _with_pair(test, asyncio.run)


def test_more_than_one_large_message_can_be_on_its_way() -> None:
    here, there = socket.socketpair()
    with here, there:
        before = here.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        widen(here)
        assert here.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_a_writer_widens_its_own_socket(runner: Any) -> None:
    with socket.socket(socket.AF_UNIX) as fresh:
        before = fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    async def test(pair: _Pair) -> None:
        sock = pair.counted.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before

    _with_pair(test, runner)
