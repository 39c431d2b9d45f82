"""Variable-length integers of QUIC (RFC 9000 section 16), as Binary HTTP and chunked Oblivious HTTP use them.

Trusts nothing. Never: reads outside the view that it is given. Longer than necessary forms are read, as the RFCs allow.
"""

from __future__ import annotations

from sealgate.errors import DecodeError

MAX_VARINT = 2**62 - 1


def encode_varint(value: int) -> bytes:
    """The shortest form."""
    if value < 0 or value > MAX_VARINT:
        raise DecodeError("integer does not fit into a variable-length integer")
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")


def read_varint(data: bytes | bytearray | memoryview, offset: int) -> tuple[int, int]:
    """The integer at `offset` and the offset behind it; raises DecodeError if the data ends before."""
    if offset >= len(data):
        raise DecodeError("data ends where an integer is expected")
    first = data[offset]
    if first < 0x40:
        return first, offset + 1
    end = offset + (1 << (first >> 6))
    if end > len(data):
        raise DecodeError("data ends inside an integer")
    value = first & 0x3F
    for index in range(offset + 1, end):
        value = value << 8 | data[index]
    return value, end
