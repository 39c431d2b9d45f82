"""The endorsement `snp`: an AMD SEV-SNP attestation report whose REPORT_DATA begins with `bind` (AMD 56860, table 23).

    proof = CBOR [ATTESTATION_REPORT, VCEK, ASK, ARK]   the certificates in DER, as AMD's key service gives them
    proof = CBOR [ATTESTATION_REPORT, VCEK, ASK, ARK, CRL]   and the root's revocation list, in DER as well

Shows that a guest with this launch measurement, not open to debuggers, ran the maker of these claims on a genuine
processor whose firmware is new enough. The report is signed by the chip's key (VCEK), which must chain to a root that
the trust file names by its digest; what the certificate says of chip and firmware must be what the report says.

    [snp]
    roots = ["hex"]                      SHA-256 of the root certificates (ARK, DER) that count
    measurements = ["hex"]               acceptable launch measurements, 48 bytes
    covers_code = false                  the launch measurement pins everything that runs, this runtime included
    crl = "if-present"                   "required": a report without the root's revocation list does not count
    [snp.min_tcb]                        the oldest firmware: all four numbers
    boot_loader = 4
    tee = 0
    snp = 20
    microcode = 213

Milan and Genoa; the firmware numbers of Turin are laid out otherwise, and such reports are refused. A list that comes
must hold, be in force and name no certificate that the root signed (AMD numbers all chips' certificates 0, so it can
name none of those: firmware that is not to count any more is kept out by `min_tcb`). Who revokes matters to whoever
demands the list alone: without `crl = "required"` one that was revoked leaves its list away.

Trusts: the trust file, the clock for the certificates' dates. Never: accepts a guest that may be debugged or migrated,
a report made for a less privileged level than 0, or one that the chip's own key did not sign.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ObjectIdentifier

from sealgate.errors import DecodeError, EvidenceError
from sealgate.evidence.endorsements.certificate_chains import require_chain
from sealgate.evidence.endorsements.endorsed import Endorsed, pinned_values, unpack
from sealgate.evidence.endorsements.maker_revocations import require_unrevoked
from sealgate.protocol import cbor

KIND = "snp"

REPORT_BYTES = 1184
_SIGNED_BYTES = 0x2A0
_VERSIONS = range(2, 6)
_ECDSA_P384_SHA384 = 1
_COORDINATE = 72  # bytes, little endian
_MUST_BE_ONE, _MIGRATION_AGENT, _DEBUG = 1 << 17, 1 << 18, 1 << 19
_SIGNING_KEY_MASK, _KEY_MASKED = 0b111 << 2, 1 << 1
_AMD = "1.3.6.1.4.1.3704.1"
_PARTS = {
    "boot_loader": (0, f"{_AMD}.3.1"),
    "tee": (1, f"{_AMD}.3.2"),
    "snp": (6, f"{_AMD}.3.3"),
    "microcode": (7, f"{_AMD}.3.8"),
}
"""Parts of the firmware: byte of TCB_VERSION (Milan, Genoa) and the certificate's extension (AMD 57230)."""
_HARDWARE_ID = f"{_AMD}.4"
_TURIN_FAMILY = 0x1A


class SnpTcb(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[snp.min_tcb]`."""

    boot_loader: int
    tee: int
    snp: int
    microcode: int


class SnpTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[snp]` of a trust file."""

    roots: tuple[str, ...]
    measurements: tuple[str, ...]
    min_tcb: SnpTcb
    covers_code: bool = False
    crl: Literal["if-present", "required"] = "if-present"


class SnpAnchor(msgspec.Struct, frozen=True, kw_only=True):
    """Whose reports count, and of which guests."""

    roots: tuple[bytes, ...]
    measurements: tuple[bytes, ...]
    min_tcb: SnpTcb
    covers_code: bool
    crl_required: bool = False


def parse_snp_anchor(table: SnpTable) -> SnpAnchor:
    """The anchor in `[snp]`; raises ConfigurationError."""
    return SnpAnchor(
        roots=pinned_values(table.roots, "roots under [snp]", width=32),
        measurements=pinned_values(table.measurements, "measurements under [snp]", width=48),
        min_tcb=table.min_tcb,
        covers_code=table.covers_code,
        crl_required=table.crl == "required",
    )


def judge_snp(proof: bytes, bind: bytes, anchor: SnpAnchor, *, now_us: int) -> Endorsed:
    """The endorsement, or EvidenceError or DecodeError."""
    report, chip, signer, root, *lists = _parts(proof)
    certificate = require_chain([chip, signer, root], anchor.roots, of="report", now_us=now_us)
    revocations = _require_unrevoked(signer, root, lists, anchor, now_us=now_us)
    _verify_report(report, certificate)
    if report[0x50:0x90] != bind + bytes(32):
        raise _refused("the report is about other claims")
    _require_isolated(report)
    _require_firmware(report, certificate, anchor.min_tcb)
    measurement = report[0x90:0xC0]
    if measurement not in anchor.measurements:
        raise _refused("the guest's launch measurement is none that the trust file names")
    return Endorsed(
        kind=KIND,
        grade="hardware",
        detail=f"report of a guest measured {measurement.hex()[:16]}..., {revocations}",
        anchor=f"root {hashlib.sha256(root).hexdigest()[:16]}...",
        covers_code=anchor.covers_code,
    )


def describe_snp(proof: bytes) -> list[tuple[str, str]]:
    """What the endorsement says, not verified, as a trust file would pin it."""
    report, _, _, root, *lists = _parts(proof)
    tcb = [(f"firmware: {name}", str(report[0x180 + at])) for name, (at, _) in _PARTS.items()]
    measured = ("launch measurement", report[0x90:0xC0].hex())
    listed = ("revocation list", f"{len(lists[0])} bytes" if lists else "none")
    return [measured, ("root certificate", hashlib.sha256(root).hexdigest()), listed, *tcb]


def _parts(proof: bytes) -> list[bytes]:
    """Report, three certificates and perhaps a list; raises DecodeError."""
    match cbor.decode(proof):
        case [bytes() as report, bytes() as chip, bytes() as signer, bytes() as root]:
            found = [report, chip, signer, root]
        case [bytes() as report, bytes() as chip, bytes() as signer, bytes() as root, bytes() as listed]:
            found = [report, chip, signer, root, listed]
        case _:
            raise DecodeError("an SNP endorsement is malformed")
    if len(report) != REPORT_BYTES:
        raise DecodeError("an SNP report is of another length")
    return found


def _require_unrevoked(signer: bytes, root: bytes, lists: list[bytes], anchor: SnpAnchor, *, now_us: int) -> str:
    """What is known of revocations, in words; raises EvidenceError."""
    if not lists:
        if anchor.crl_required:
            raise _refused("the trust file demands the root's revocation list, and none came with the report")
        return "no revocation list"
    issuer, *issued = (x509.load_der_x509_certificate(der) for der in (root, root, signer))
    until = require_unrevoked(lists[0], issuer, issued, of="report", now_us=now_us)
    return f"not revoked, by a list in force until {until:%Y-%m-%d}"


def _verify_report(report: bytes, certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _refused("the chip's key is not of the kind that reports are signed with")
    if unpack("<I", report, 0x34) != _ECDSA_P384_SHA384:
        raise DecodeError("the report is signed with another algorithm")
    at = _SIGNED_BYTES
    r, s = (int.from_bytes(report[start : start + _COORDINATE], "little") for start in (at, at + _COORDINATE))
    if any(report[at + 2 * _COORDINATE :]):
        raise DecodeError("bytes follow the report's signature")
    try:
        key.verify(encode_dss_signature(r, s), report[:_SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise _refused("the report's signature does not hold") from error


def _require_isolated(report: bytes) -> None:
    """The guest's policy and level, and that the chip's own key signed."""
    policy, keys = unpack("<Q", report, 0x08), unpack("<I", report, 0x48)
    if unpack("<I", report, 0) not in _VERSIONS or not policy & _MUST_BE_ONE:
        raise DecodeError("the report is of a version that is not known")
    if policy & _DEBUG:
        raise _refused("the guest may be debugged")
    if policy & _MIGRATION_AGENT:
        raise _refused("the guest may be migrated")
    if unpack("<I", report, 0x30) != 0:
        raise _refused("the report was asked for by a less privileged level than 0")
    if keys & (_SIGNING_KEY_MASK | _KEY_MASKED):
        raise _refused("the report is not signed by the chip's own key")


def _require_firmware(report: bytes, certificate: x509.Certificate, least: SnpTcb) -> None:
    """The firmware that the report states is what the key was made for, and new enough; the chip is the key's."""
    if unpack("<I", report, 0) >= 3 and report[0x188] == _TURIN_FAMILY:
        raise DecodeError("the report is of a processor whose firmware numbers are not known")
    if _extension(certificate, _HARDWARE_ID)[-64:] != report[0x1A0:0x1E0]:
        raise _refused("the report is of another chip than its key")
    for name, (at, oid) in _PARTS.items():
        if _number(certificate, oid) != report[0x180 + at]:
            raise _refused(f"the report's firmware ({name}) is not the one that its key was made for")
        for tcb in (0x180, 0x1E0):  # reported, committed
            if report[tcb + at] < getattr(least, name):
                raise _refused(f"the firmware ({name}) is older than the trust file allows")


def _extension(certificate: x509.Certificate, oid: str) -> bytes:
    try:
        found = certificate.extensions.get_extension_for_oid(ObjectIdentifier(oid)).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise _refused("the chip's certificate lacks what it must say") from error
    return found.value if isinstance(found, x509.UnrecognizedExtension) else b""


def _number(certificate: x509.Certificate, oid: str) -> int:
    """A DER INTEGER of one byte, or of two whose first is zero."""
    der = _extension(certificate, oid)
    if len(der) < 3 or der[0] != 2 or der[1] != len(der) - 2 or len(der) > 4:
        raise _refused("the chip's certificate lacks what it must say")
    return int.from_bytes(der[2:], "big")


def _refused(why: str) -> EvidenceError:
    return EvidenceError(why, code="endorsement-signature")
