"""Lets blocking code write in a thread what the event loop streams out, with a bounded number of pieces between them.

Trusts: the writing code to stop when a write raises. Never: holds more than EXPORT_CHUNKS_AHEAD pieces; leaves the
thread behind: when the reader goes away, the writer's next write raises BrokenPipeError.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Callable
from typing import Any, BinaryIO, cast

from gateway.limits import EXPORT_CHUNK, EXPORT_CHUNKS_AHEAD


class _Pipe(io.RawIOBase):
    """The writing end: a file that blocks while the reader is behind."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[bytes | None]) -> None:
        self._loop = loop
        self._pieces = pieces
        self.reader_gone = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), EXPORT_CHUNK):
            if self.reader_gone:
                raise BrokenPipeError
            self._put(bytes(view[start : start + EXPORT_CHUNK]))
        return len(view)

    def finish(self) -> None:
        self._put(None)

    def _put(self, piece: bytes | None) -> None:
        asyncio.run_coroutine_threadsafe(self._pieces.put(piece), self._loop).result()


async def stream_from_thread(write: Callable[[BinaryIO], None]) -> AsyncGenerator[bytes, None]:
    """What `write` writes, piece by piece. An exception of `write` is raised here, after the pieces before it."""
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(EXPORT_CHUNKS_AHEAD)
    pipe = _Pipe(asyncio.get_running_loop(), pieces)

    def run() -> None:
        try:
            # Small writes are joined, so that a piece is worth its way through the queue.
            with io.BufferedWriter(pipe, EXPORT_CHUNK) as out:
                write(cast(BinaryIO, out))
                out.flush()
        finally:
            pipe.finish()

    writing = asyncio.ensure_future(asyncio.to_thread(run))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        await writing
    finally:
        pipe.reader_gone = True
        while not writing.done():  # a writer that waits for room gets it, and then learns that nobody reads
            while not pieces.empty():
                pieces.get_nowait()
            await asyncio.wait({writing}, timeout=0.05)
        if not writing.cancelled():
            writing.exception()  # seen: it was raised above, or nobody is left to hear it
