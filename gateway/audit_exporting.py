"""An export on its way out: written by blocking code in a thread, streamed as it comes, within the places for readers.

Trusts: that the caller was authorised, and that the export is on record (`gateway.audit_reading`). Never: begins an
answer for what cannot be exported: that is refused before the first byte; what breaks later breaks the connection off.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO

from litestar.response import Stream

from gateway.audit_reading import MayRead, answerable
from gateway.gate import Gate
from gateway.thread_stream import stream_from_thread


async def export_stream(
    gate: Gate, may: MayRead, write: Callable[[BinaryIO], None], *, media_type: str, filename: str
) -> Stream:
    """The answer that hands out what `write` writes, as a file of this name."""
    pieces = _exported(gate, write)
    head = await answerable(anext(pieces))
    headers = may.headers | {"Content-Disposition": f'attachment; filename="{filename}"'}
    return Stream(_joined(head, pieces), media_type=media_type, headers=headers)


async def _exported(gate: Gate, write: Callable[[BinaryIO], None]) -> AsyncIterator[bytes]:
    with gate.reading.slot():
        async with contextlib.aclosing(stream_from_thread(write)) as pieces:
            async for piece in pieces:
                yield piece


async def _joined(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for piece in rest:
        yield piece
