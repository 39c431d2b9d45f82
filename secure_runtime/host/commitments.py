"""Commitments to sealed messages, without keeping everybody else waiting.

A hash of 100 MiB takes a quarter of a second on a slow processor: it is made in a thread, where it holds no lock of the
interpreter's. Trusts: nothing. Never: looks into what it hashes.
"""

from __future__ import annotations

import asyncio

from sealgate.protocol.ohttp import commitment
from secure_runtime.limits import HASHED_AT_ONCE


async def committed(sealed: bytes) -> str:
    """`commitment` of these bytes."""
    if len(sealed) > HASHED_AT_ONCE:
        return await asyncio.to_thread(commitment, sealed)
    return commitment(sealed)
