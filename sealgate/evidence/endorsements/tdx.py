"""The endorsement `tdx`: an Intel TDX quote whose REPORTDATA begins with `bind`, with the collateral to judge it.

    proof = CBOR [quote, collateral]     quote version 4 or 5; the collateral as JSON, as Intel's service signed it

Shows that a trust domain with these measurements, not open to debuggers, ran the maker of these claims on a genuine
processor. Chains, signatures, revocation lists and the state of the firmware are judged by the library dcap-qvl, which
must be installed beside the client; the collateral comes with the evidence, is signed by Intel and expires, so no
network is asked.

    [tdx]
    roots = ["hex"]                      SHA-256 of the root certificates (DER) that count
    mr_td = ["hex"]                      acceptable measurements of the domain as it was built, 48 bytes
    statuses = ["UpToDate"]              acceptable states of the platform's firmware
    covers_code = false                  these measurements pin everything that runs, this runtime included
    [tdx.rtmrs]
    0 = ["hex"]                          acceptable values of run-time registers 0 to 3; at least one

Trusts: the trust file, dcap-qvl, the clock. Never: takes a quote that verifies for one whose status is acceptable;
accepts a domain that may be debugged, or a quote of another kind than TDX.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Protocol, cast

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealgate.errors import ConfigurationError, DecodeError, EvidenceError
from sealgate.evidence.endorsements.certificate_chains import STRANGE
from sealgate.evidence.endorsements.endorsed import Endorsed, pinned_values
from sealgate.protocol import cbor

KIND = "tdx"

_STATUS = re.compile(r"[A-Za-z]{1,64}\Z")
_DEBUG = 1  # of the first byte of TDATTRIBUTES
_HEADER, _BODY_DESCRIPTOR = 48, 6  # bytes before the report in a quote, and more of them in version 5
_MR_TD, _RTMR0, _REGISTER = 136, 328, 48  # places in the report
_RTMRS = ("rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3")


class TdxTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[tdx]` of a trust file."""

    roots: tuple[str, ...]
    mr_td: tuple[str, ...]
    rtmrs: dict[str, tuple[str, ...]]
    statuses: tuple[str, ...] = ("UpToDate",)
    covers_code: bool = False


class TdxAnchor(msgspec.Struct, frozen=True, kw_only=True):
    """Whose quotes count, and of which trust domains."""

    roots: tuple[bytes, ...]
    mr_td: tuple[bytes, ...]
    rtmrs: Mapping[int, tuple[bytes, ...]]
    statuses: tuple[str, ...]
    covers_code: bool


class _Report(Protocol):
    """What is read of the library's TD report."""

    td_attributes: bytes
    mr_td: bytes
    report_data: bytes


def parse_tdx_anchor(table: TdxTable) -> TdxAnchor:
    """The anchor in `[tdx]`; raises ConfigurationError."""
    if not table.statuses or not all(_STATUS.match(one) for one in table.statuses):
        raise ConfigurationError("statuses under [tdx] must list states of the firmware, such as UpToDate")
    if not table.rtmrs or not set(table.rtmrs) <= {"0", "1", "2", "3"}:
        raise ConfigurationError("[tdx.rtmrs] must name at least one register, 0 to 3")
    rtmrs = {int(number): pinned_values(one, f"[tdx.rtmrs] {number}", width=48) for number, one in table.rtmrs.items()}
    return TdxAnchor(
        roots=pinned_values(table.roots, "roots under [tdx]", width=32),
        mr_td=pinned_values(table.mr_td, "mr_td under [tdx]", width=48),
        rtmrs=rtmrs,
        statuses=table.statuses,
        covers_code=table.covers_code,
    )


def judge_tdx(proof: bytes, bind: bytes, anchor: TdxAnchor, *, now_us: int) -> Endorsed:
    """The endorsement, or EvidenceError or DecodeError."""
    quote, collateral = _parts(proof)
    library = _library()
    parsed = _parsed(library, quote)
    root = _root(parsed)
    if hashlib.sha256(root).digest() not in anchor.roots:
        raise _refused("the quote's root certificate is none that the trust file names")
    try:
        signed = library.QuoteCollateralV3.from_json(collateral)
        verified = library.verify_with_root_ca(quote, signed, root, now_us // 1_000_000)
        status = json.loads(verified.to_json())["status"]
    except (ValueError, TypeError, KeyError) as error:
        raise _refused("the quote or its collateral does not hold, or has expired") from error
    if status not in anchor.statuses:
        raise _refused("the state of the platform's firmware is none that the trust file accepts")
    report = cast("_Report", parsed.report)
    if report.report_data != bind + bytes(32):
        raise _refused("the quote is about other claims")
    if report.td_attributes[0] & _DEBUG:
        raise _refused("the trust domain may be debugged")
    if report.mr_td not in anchor.mr_td:
        raise _refused("the domain's measurement (MRTD) is none that the trust file names")
    for number, acceptable in sorted(anchor.rtmrs.items()):
        if getattr(report, _RTMRS[number]) not in acceptable:
            raise _refused(f"run-time register {number} has another value than the trust file pins")
    return Endorsed(
        kind=KIND,
        grade="hardware",
        detail=f"quote of a domain measured {report.mr_td.hex()[:16]}..., firmware {status}",
        anchor=f"root {hashlib.sha256(root).hexdigest()[:16]}...",
        covers_code=anchor.covers_code,
    )


def describe_tdx(proof: bytes) -> list[tuple[str, str]]:
    """What the endorsement says, not verified, as a trust file would pin it. Needs no library: the places of these
    values are fixed (Intel TDX DCAP Quoting Library API, A.3)."""
    quote, collateral = _parts(proof)
    version = int.from_bytes(quote[:2], "little")
    body = quote[_HEADER:] if version == 4 else quote[_HEADER + _BODY_DESCRIPTOR :]
    if version not in (4, 5) or len(body) < _RTMR0 + len(_RTMRS) * _REGISTER:
        raise DecodeError("it is no TDX quote")
    registers = (body[_RTMR0 + number * _REGISTER :][:_REGISTER].hex() for number in range(len(_RTMRS)))
    return [
        ("quote version", str(version)),
        ("MRTD", body[_MR_TD : _MR_TD + _REGISTER].hex()),
        *((f"run-time register {number}", value) for number, value in enumerate(registers)),
        ("collateral", f"{len(collateral)} bytes"),
    ]


def _parts(proof: bytes) -> tuple[bytes, str]:
    match cbor.decode(proof):
        case [bytes() as quote, str() as collateral]:
            return quote, collateral
    raise DecodeError("a TDX endorsement is malformed")


def _library() -> Any:
    """dcap-qvl, if it is here: a client that trusts no TDX quotes does not need it."""
    try:
        import dcap_qvl
    except ImportError as error:
        raise _refused("TDX quotes are judged by the package dcap-qvl, which is not installed") from error
    return dcap_qvl


def _parsed(library: Any, quote: bytes) -> Any:
    try:
        parsed = library.Quote.parse(quote)
        if not parsed.is_tdx():
            raise ValueError
    except (ValueError, TypeError) as error:
        raise DecodeError("it is no TDX quote") from error
    return parsed


def _root(parsed: Any) -> bytes:
    """The last certificate of the quote's chain, which names itself as issuer; DER."""
    try:
        chain = x509.load_pem_x509_certificates((parsed.cert_chain_pem_bytes() or b"").rstrip(b"\x00"))
        root = chain[-1]
    except (ValueError, IndexError, TypeError, *STRANGE) as error:
        raise DecodeError("a TDX quote comes without its certificates") from error
    return root.public_bytes(Encoding.DER)


def _refused(why: str) -> EvidenceError:
    return EvidenceError(why, code="endorsement-signature")
