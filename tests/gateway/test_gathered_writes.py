"""What is written in one turn leaves together, in order; closing loses nothing; a peer that has gone harms nobody."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from gateway.gathered_writes import GatheredWrites
from gateway.limits import GATHERED_ANSWER


class _Counted:
    """A real transport that counts its writes."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


_Test = Callable[[GatheredWrites, _Counted, socket.socket], Awaitable[None]]


def _run(test: _Test, runner: Callable[[Any], None]) -> None:
    faults: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        here, there = socket.socketpair()
        here.setblocking(False)
        there.setblocking(False)
        transport, _ = await loop.create_unix_connection(asyncio.Protocol, sock=here)
        counted = _Counted(transport)
        try:
            async with asyncio.timeout(60):
                await test(GatheredWrites(counted, loop), counted, there)  # type: ignore[arg-type]
        finally:
            transport.abort()
            await asyncio.sleep(0)
            there.close()

    runner(main())
    assert faults == []


async def _all(there: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (piece := await asyncio.get_running_loop().sock_recv(there, 1 << 16)):
        got += piece
    return got


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_head_and_body_leave_in_one_write(runner: Any) -> None:
    async def test(writes: GatheredWrites, counted: _Counted, there: socket.socket) -> None:
        writes.write(b"head ")
        writes.write(b"body")
        assert counted.writes == 0
        assert await _all(there, 9) == b"head body"
        assert counted.writes == 1
        writes.write(b"more")
        assert await _all(there, 4) == b"more"
        assert counted.writes == 2

    _run(test, runner)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_a_large_answer_does_not_wait_and_keeps_its_place(runner: Any) -> None:
    async def test(writes: GatheredWrites, counted: _Counted, there: socket.socket) -> None:
        writes.write(b"head ")
        writes.write(bytes(GATHERED_ANSWER))
        assert counted.writes == 1
        writes.write(b" tail")
        writes.close()
        assert counted.writes == 2
        assert await _all(there, GATHERED_ANSWER + 11) == b"head " + bytes(GATHERED_ANSWER) + b" tail"

    _run(test, runner)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_what_a_peer_that_has_gone_does_not_take_is_dropped(runner: Any) -> None:
    async def test(writes: GatheredWrites, counted: _Counted, there: socket.socket) -> None:
        writes.write(b"head")
        writes.abort()
        assert writes.is_closing()
        for _ in range(3):
            await asyncio.sleep(0)
        assert counted.writes == 0
        assert await _all(there, 1) == b""

    _run(test, runner)
