"""The endorsement `nvidia-gpu`: reports of NVIDIA GPUs in confidential mode whose nonce is `bind` (Hopper; SPDM 1.1).

    proof = CBOR [[[report, [certificate, ...]], ...], [manifest, ...]]
        each GPU's report with its chain in DER (its own first, the root last); the maker's signed reference manifests

Shows that genuine GPUs with this driver and firmware, which measured what the trust file demands, answered somebody who
had these claims. It does NOT show that this runtime computes on them: anybody who can talk to such a GPU can have a
report over any nonce. So it counts only in a token that a confidential machine (`snp`, `tdx`) endorses as well, raises
no claim's grade by itself, and what code in that machine asked is as good as the machine's `covers_code`.

    [nvidia-gpu]
    roots = ["hex"]                      SHA-256 of the device root certificates (DER) that count
    driver_versions = ["550.90.07"]      acceptable drivers
    vbios_versions = ["96.00.9f.00.01"]  acceptable firmware
    rim_roots = ["hex"]                  signers of manifests: each GPU must measure what those of its versions say
    [nvidia-gpu.measurements]            or, and, pinned by hand:
    5 = ["hex"]                          acceptable values of a measurement, 48 bytes, 1 to 254

At least one of `rim_roots` and `measurements`. The chain's last certificate carries the digest of the firmware that its
key was made for (TCG DICE); the report must state the same. Revocation (OCSP, which needs a network and NVIDIA's word
at that moment) is not checked. A Hopper report does not say whether debug tools are on; the attester refuses then,
and that is its own word.

Trusts: the trust file, the clock for the certificates' dates. Never: accepts a GPU alone; the same GPU twice; a
manifest whose signature does not hold; a report that lacks what a pin or a manifest names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier

from sealgate.errors import ConfigurationError, DecodeError, EvidenceError
from sealgate.evidence.endorsements.certificate_chains import require_chain
from sealgate.evidence.endorsements.endorsed import Endorsed, pinned_values
from sealgate.evidence.endorsements.rim import Manifest, verify_manifest
from sealgate.evidence.endorsements.spdm import SpdmReport, parse_spdm_report, verify_spdm_signature
from sealgate.limits import MAX_CHAIN, MAX_GPUS, MAX_RIMS
from sealgate.protocol import cbor

KIND = "nvidia-gpu"

_DRIVER, _VBIOS, _FIRMWARE_ID = 3, 6, 20  # of the opaque data
_DICE = ObjectIdentifier("2.23.133.5.4.1")
_SHA384_DIGEST = bytes.fromhex("06096086480165030402020430")  # DER of the algorithm and of 48 bytes that follow
_VERSION = re.compile(r"[0-9a-z]{1,8}(?:\.[0-9a-z]{1,8}){1,6}\Z")
_DIGEST = 48

Gpu = tuple[bytes, list[bytes]]
"""A report and the chain of its key."""


class GpuTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[nvidia-gpu]` of a trust file."""

    roots: tuple[str, ...]
    driver_versions: tuple[str, ...]
    vbios_versions: tuple[str, ...]
    rim_roots: tuple[str, ...] | None = None
    measurements: dict[str, tuple[str, ...]] | None = None


class GpuAnchor(msgspec.Struct, frozen=True, kw_only=True):
    """Whose reports count, and of which GPUs. Empty: not demanded; one of the last two is not."""

    roots: tuple[bytes, ...]
    driver_versions: tuple[str, ...]
    vbios_versions: tuple[str, ...]
    rim_roots: tuple[bytes, ...]
    measurements: Mapping[int, tuple[bytes, ...]]


def parse_gpu_anchor(table: GpuTable) -> GpuAnchor:
    """The anchor in `[nvidia-gpu]`; raises ConfigurationError."""
    if table.rim_roots is None and table.measurements is None:
        raise ConfigurationError("[nvidia-gpu] must pin what GPUs measure: rim_roots or [nvidia-gpu.measurements]")
    pinned = {} if table.measurements is None else table.measurements
    if table.measurements is not None and not table.measurements:
        raise ConfigurationError("[nvidia-gpu.measurements] pins nothing; name a measurement, 1 to 254")
    if not all(number.isascii() and number.isdecimal() and 0 < int(number) < 0xFF for number in pinned):
        raise ConfigurationError("[nvidia-gpu.measurements] must name measurements by number, 1 to 254")
    where = "under [nvidia-gpu]"
    rim_roots = () if table.rim_roots is None else pinned_values(table.rim_roots, f"rim_roots {where}", width=32)
    return GpuAnchor(
        roots=pinned_values(table.roots, f"roots {where}", width=32),
        driver_versions=_versions(table.driver_versions, f"driver_versions {where}"),
        vbios_versions=_versions(table.vbios_versions, f"vbios_versions {where}"),
        rim_roots=rim_roots,
        measurements={
            int(number): pinned_values(one, f"[nvidia-gpu.measurements] {number}", width=_DIGEST)
            for number, one in pinned.items()
        },
    )


def judge_nvidia_gpu(proof: bytes, bind: bytes, anchor: GpuAnchor, *, now_us: int) -> Endorsed:
    """The endorsement, or EvidenceError or DecodeError."""
    gpus, documents = _parts(proof)
    manifests: dict[str, Manifest] = {}
    if anchor.rim_roots:
        for document in documents:
            manifest = verify_manifest(document, anchor.rim_roots, now_us=now_us)
            if manifest.version in manifests:
                raise DecodeError("two manifests are of one version")
            manifests[manifest.version] = manifest
    chips: set[bytes] = set()
    told: set[str] = set()
    for raw, chain in gpus:
        certificate = require_chain(chain, anchor.roots, of="GPU", now_us=now_us)
        report = parse_spdm_report(raw)
        verify_spdm_signature(report, certificate)
        if report.nonce != bind:
            raise _refused("a GPU's report is about other claims")
        # By its key: the certificate's own ECDSA signature (r, s) may be written (r, n - s), and it is another file.
        chip = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if chip in chips:
            raise _refused("a GPU is listed twice")
        chips.add(chip)
        _require_firmware(report, certificate)
        told.add(_require_released(report, anchor, manifests))
    return Endorsed(
        kind=KIND,
        grade="hardware",
        detail=f"{len(gpus)} {'GPU' if len(gpus) == 1 else 'GPUs'}: {'; '.join(sorted(told))}",
        anchor=f"root {hashlib.sha256(gpus[0][1][-1]).hexdigest()[:16]}...",
        covers_code=False,
        device_only=True,
    )


def describe_nvidia_gpu(proof: bytes) -> list[tuple[str, str]]:
    """What the endorsement says, not verified, as a trust file would pin it; measurements of zeros left out."""
    gpus, documents = _parts(proof)
    found: list[tuple[str, str]] = []
    for number, (raw, chain) in enumerate(gpus):
        report, of = parse_spdm_report(raw), f"GPU {number}"
        root = hashlib.sha256(chain[-1]).hexdigest() if chain else "none"
        found += [(f"{of}: driver", _driver(report)), (f"{of}: firmware", _vbios(report)), (f"{of}: root", root)]
        found += [(f"{of}: measurement {index}", value.hex()) for index, value in report.blocks.items() if any(value)]
    return [*found, ("manifests", str(len(documents)))]


def _parts(proof: bytes) -> tuple[list[Gpu], list[bytes]]:
    match cbor.decode(proof):
        case [list() as listed, list() as documents] if 0 < len(listed) <= MAX_GPUS and len(documents) <= MAX_RIMS:
            pass
        case _:
            raise DecodeError("a GPU endorsement is malformed")
    gpus: list[Gpu] = []
    for one in listed:
        match one:
            case [bytes() as report, list() as chain] if len(chain) <= MAX_CHAIN:
                gpus.append((report, [_bytes(certificate) for certificate in chain]))
            case _:
                raise DecodeError("a GPU endorsement is malformed")
    return gpus, [_bytes(document) for document in documents]


def _bytes(value: cbor.Value) -> bytes:
    if not isinstance(value, bytes):
        raise DecodeError("a GPU endorsement is malformed")
    return value


def _require_firmware(report: SpdmReport, certificate: x509.Certificate) -> None:
    """The key is the one that the chip gave to the firmware which the report states."""
    try:
        found = certificate.extensions.get_extension_for_oid(_DICE).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise _refused("the GPU's certificate does not say which firmware has its key") from error
    said = found.value if isinstance(found, x509.UnrecognizedExtension) else b""
    stated = report.fields.get(_FIRMWARE_ID, b"")
    if len(stated) != _DIGEST or said[-_DIGEST - len(_SHA384_DIGEST) :] != _SHA384_DIGEST + stated:
        raise _refused("the GPU's key was made for another firmware than its report states")


def _require_released(report: SpdmReport, anchor: GpuAnchor, manifests: Mapping[str, Manifest]) -> str:
    """Versions and measurements are as the trust file and the maker's manifests say; what to tell of it."""
    driver, vbios = _driver(report), _vbios(report)
    if driver not in anchor.driver_versions:
        raise _refused(f"the GPU's driver {driver} is none that the trust file names")
    if vbios not in anchor.vbios_versions:
        raise _refused(f"the GPU's firmware {vbios} is none that the trust file names")
    expected: dict[int, Sequence[bytes] | frozenset[bytes]] = {}
    if anchor.rim_roots:
        for version in (driver, vbios):
            if version not in manifests:
                raise _refused(f"no manifest of {version} comes with the GPU's report")
            golden = manifests[version].golden
            if expected.keys() & golden.keys() or not golden:
                raise _refused("two manifests are about one measurement, or one is about none")
            expected |= golden
    for compared in (expected, anchor.measurements):
        for index, acceptable in sorted(compared.items()):
            if report.blocks.get(index) not in acceptable:
                raise _refused(f"the GPU's measurement {index} has another value than is expected")
    count = len(expected.keys() | anchor.measurements.keys())
    return f"driver {driver}, firmware {vbios}, {count} of {len(report.blocks)} measurements compared"


def _driver(report: SpdmReport) -> str:
    text = report.fields.get(_DRIVER, b"").rstrip(b"\x00").decode("ascii", "replace").lower()
    if not _VERSION.match(text):
        raise DecodeError("a GPU's report states no version of its driver")
    return text


def _vbios(report: SpdmReport) -> str:
    """Eight bytes: the first four backwards, then the fifth, in hexadecimal."""
    raw = report.fields.get(_VBIOS, b"")
    if len(raw) != 8:
        raise DecodeError("a GPU's report states no version of its firmware")
    return ".".join(f"{byte:02x}" for byte in (*reversed(raw[:4]), raw[4]))


def _versions(values: tuple[str, ...], name: str) -> tuple[str, ...]:
    lowered = tuple(value.lower() for value in values)
    if not lowered or not all(_VERSION.match(value) for value in lowered):
        raise ConfigurationError(f"{name} must list versions such as 550.90.07, at least one")
    return lowered


def _refused(why: str) -> EvidenceError:
    return EvidenceError(why, code="endorsement-signature")
