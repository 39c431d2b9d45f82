"""Measurements that a device signed: the two messages of SPDM 1.1 that a GPU's report consists of (DMTF DSP0274).

    GET_MEASUREMENTS  version 1, code 0xE0, attributes 1, operation 1, nonce 32, slot 1
    MEASUREMENTS      version 1, code 0x60, two reserved, blocks 1, record length 3, record, nonce 32,
                      opaque length 2, opaque data, signature 96 (ECDSA P-384 over SHA-384, r then s)

    block             index 1, specification 1 (DMTF), size 2, then type 1, size 2, value
    opaque data       NVIDIA's own: type 2, size 2, value, repeated

Numbers are little endian. The signature is over both messages up to itself, so the asker's nonce is covered.

Trusts nothing: what is parsed is an allegation until `verify_spdm_signature`. Never: skips a byte; takes a block or a
field twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sealgate.errors import DecodeError, EvidenceError
from sealgate.evidence.endorsements.endorsed import Reader
from sealgate.limits import MAX_GPU_REPORT, MAX_SPDM_FIELDS

VERSION, GET_MEASUREMENTS, MEASUREMENTS = 0x11, 0xE0, 0x60
SIGNED, ALL_BLOCKS = 0x01, 0xFF
SIGNATURE_BYTES = 96
_DMTF, _NONCE = 0x01, 32
_RAW = 0x80  # of a block's type: the value is no digest
_COORDINATE = 48


@dataclass(frozen=True, kw_only=True)
class SpdmReport:
    """Both messages, parsed; proves nothing by itself."""

    nonce: bytes  # the asker's
    blocks: Mapping[int, bytes]  # digests by index, 1 to 254
    fields: Mapping[int, bytes]  # opaque data by type
    signed: bytes
    signature: bytes


def parse_spdm_report(report: bytes) -> SpdmReport:
    """Raises DecodeError for anything but a signed answer with every measurement."""
    if len(report) > MAX_GPU_REPORT:
        raise DecodeError("a device's report is too large")
    reader = Reader(report, order="<")
    if [reader.number(1) for _ in range(4)] != [VERSION, GET_MEASUREMENTS, SIGNED, ALL_BLOCKS]:
        raise DecodeError("a device's report answers no request for all signed measurements")
    nonce, slot = reader.take(_NONCE), reader.number(1)
    if [reader.number(1) for _ in range(4)] != [VERSION, MEASUREMENTS, 0, slot]:
        raise DecodeError("a device's report is no answer with measurements")
    count = reader.number(1)
    blocks = _blocks(reader.sized(3), count)
    reader.take(_NONCE)  # the device's own; whoever asks for its freshness has the signature
    fields = _fields(reader.sized(2))
    signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return SpdmReport(nonce=nonce, blocks=blocks, fields=fields, signed=report[:-SIGNATURE_BYTES], signature=signature)


def verify_spdm_signature(report: SpdmReport, certificate: x509.Certificate) -> None:
    """The report is signed by the certificate's key; raises EvidenceError."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EvidenceError("the device's key is not of the kind that reports are signed with", code=_CODE)
    r, s = (int.from_bytes(part, "big") for part in (report.signature[:_COORDINATE], report.signature[_COORDINATE:]))
    try:
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise EvidenceError("the device's signature does not hold", code=_CODE) from error


_CODE = "endorsement-signature"


def _blocks(record: bytes, count: int) -> dict[int, bytes]:
    reader = Reader(record, order="<")
    found: dict[int, bytes] = {}
    for _ in range(count):
        index, specification = reader.number(1), reader.number(1)
        if specification != _DMTF or index in found or not 0 < index < 0xFF:
            raise DecodeError("a device's measurement is of another form, or is given twice")
        block = Reader(reader.sized(2), order="<")
        if block.number(1) & _RAW:
            raise DecodeError("a device's measurement is no digest")
        found[index] = block.sized(2)
        block.end()
    reader.end()
    if not found:
        raise DecodeError("a device's report has no measurements")
    return found


def _fields(opaque: bytes) -> dict[int, bytes]:
    reader = Reader(opaque, order="<")
    found: dict[int, bytes] = {}
    while reader.left:
        kind, value = reader.number(2), reader.sized(2)
        if kind in found or len(found) >= MAX_SPDM_FIELDS:
            raise DecodeError("a device's report says something twice, or too much")
        found[kind] = value
    return found
