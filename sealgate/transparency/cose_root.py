"""The log's signature over a root in COSE (RFC 9052), as a COSE Receipt carries it (RFC 9942 section 5).

A signed note covers a text of three lines, a COSE Receipt the 32 bytes of a root, so one cannot be made out of the
other without the log's key. Therefore a log puts both on every checkpoint that it publishes: the second as a signature
line of a type of its own (C2SP signed-note, type 0xff), which other readers of notes pass over. Then whoever holds a
published checkpoint and the path to a record can make a COSE Receipt.

What is signed begins with the byte 0x84 (an array of four), which no note text can begin with: it is not UTF-8. So
neither signature can stand for the other. The COSE signature covers the root alone, not the tree's size.
Trusts nothing. Never: holds a private key.
"""

from __future__ import annotations

from sealgate.errors import DecodeError
from sealgate.limits import MAX_RECEIPT
from sealgate.protocol import cbor

LINE_TYPE = b"\xffsealgate/cose-receipt-root@v1\n"
"""The type of the signature line, as its key id takes it in (signed-note, "Signature types": 0xff and a long name)."""

ALG, KID, CWT_CLAIMS, VDS, VDP = 1, 4, 15, 395, 396  # header parameters: RFC 9052, RFC 9597, RFC 9942
EDDSA = -8
RFC9162_SHA256 = 1  # the verifiable data structure
INCLUSION = -1  # the proof type of it
ISS = 1


def protected_header(origin: str, key_id: bytes) -> bytes:
    """The encoded protected header: algorithm, key, who issued it, and which tree it is about."""
    return cbor.encode({ALG: EDDSA, KID: key_id, CWT_CLAIMS: {ISS: origin}, VDS: RFC9162_SHA256})


def parse_issuer(protected: bytes) -> str:
    """The origin that an encoded protected header names; "" if it names none. Nothing else of it is checked."""
    try:
        match cbor.decode(protected, limit=MAX_RECEIPT):
            case {15: {1: str(origin)}}:
                return origin
    except DecodeError:
        pass
    return ""


def root_message(origin: str, key_id: bytes, root: bytes) -> bytes:
    """What is signed: RFC 9052 section 4.4, with the root as detached payload."""
    return cbor.encode(["Signature1", protected_header(origin, key_id), b"", root])
