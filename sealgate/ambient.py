"""The one place where time and randomness enter. Everything else takes them as arguments, so tests inject their own.

Never: a seeded or reproducible generator. `random_bytes` is the operating system's CSPRNG.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns microseconds since the Unix epoch (UTC)."""

Entropy = Callable[[int], bytes]
"""Returns that many unpredictable bytes."""


def now_us() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def monotonic_ns() -> int:
    """Nanoseconds of a clock that never goes back; for durations only."""
    return time.monotonic_ns()


def process_cpu_ns() -> int:
    """Nanoseconds that all threads of this process have had a processor for; for differences only."""
    return time.process_time_ns()


def random_bytes(count: int) -> bytes:
    """`count` bytes from the operating system's CSPRNG."""
    return os.urandom(count)


def uuid7(now: int, entropy: Entropy = random_bytes) -> str:
    """A UUIDv7 (RFC 9562 section 5.7) for the microsecond time `now`, as its 36-character text."""
    value = ((now // 1000) & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76
    rand = int.from_bytes(entropy(10), "big")
    value |= ((rand >> 64) & 0xFFF) << 64 | 0b10 << 62 | (rand & 0x3FFFFFFFFFFFFFFF)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
