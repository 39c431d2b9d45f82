"""What a verified endorsement gives: the grade, and of which claims.

An endorsement counts only where the trust file says what it should show: which key or root, and which measurement of
the platform. A quote of an unknown platform tells nothing about who made the claims, so there is no such option.

Trusts nothing by itself. Never: gives a grade for a proof that was not checked to its root.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from sealgate.errors import ConfigurationError, DecodeError

_HEX = re.compile(r"(?:[0-9a-f]{2})+\Z")


@dataclass(frozen=True, kw_only=True)
class Endorsed:
    """`grade` of the claims that a runtime makes about its keys, deployment and models; with `covers_code`, of what it
    says about its own sandbox and measurements too, because the platform's measurement names that code."""

    kind: str
    grade: str  # "tpm" or "hardware"
    detail: str
    anchor: str
    covers_code: bool
    device_only: bool = False  # it vouches for the device beside the worker, not for the worker


class Reader:
    """A cursor over a binary structure; every read checks what is left. Raises DecodeError. `order` is ">" or "<"."""

    def __init__(self, data: bytes, *, order: str) -> None:
        self._data, self._at, self._order = data, 0, order

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise DecodeError("a quote ends early")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big" if self._order == ">" else "little")

    def sized(self, width: int = 2) -> bytes:
        """Bytes behind their length."""
        return self.take(self.number(width))

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        if self._at != len(self._data):
            raise DecodeError("bytes follow a quote")


def pinned_values(values: tuple[str, ...], name: str, *, width: int) -> tuple[bytes, ...]:
    """Hexadecimal values of the trust file, `width` bytes each, at least one; raises ConfigurationError."""
    if not values or not all(_HEX.match(value) and len(value) == 2 * width for value in values):
        raise ConfigurationError(f"{name} must list values of {2 * width} lowercase hexadecimal digits, at least one")
    return tuple(bytes.fromhex(value) for value in values)


def unpack(form: str, data: bytes, at: int) -> int:
    """One number of a structure of fixed shape whose length was checked."""
    found: int = struct.unpack_from(form, data, at)[0]
    return found
