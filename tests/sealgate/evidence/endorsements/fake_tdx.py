"""A processor that signs TDX quotes, and the service that vouches for its firmware, under a root of their own that says
Intel's names. Lives under tests only."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, ObjectIdentifier

from sealgate.protocol import cbor

FMSPC = bytes.fromhex("b0c06f000000")
QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
SVN = 5
ISSUED, NEXT = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2027, 2, 1, tzinfo=datetime.UTC)
_SGX = "1.2.840.113741.1.13.1"
_P = "%Y-%m-%dT%H:%M:%SZ"


@functools.cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()[:31], "big"), ec.SECP256R1())


def raw_sign(signer: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(signer.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        head = bytes([size])
    else:
        length = size.to_bytes((size.bit_length() + 7) // 8, "big")
        head = bytes([0x80 | len(length)]) + length
    return bytes([tag]) + head + content


def oid_der(text: str) -> bytes:
    numbers = [int(part) for part in text.split(".")]
    out = bytearray([numbers[0] * 40 + numbers[1]])
    for number in numbers[2:]:
        digits = [number & 127]
        while number := number >> 7:
            digits.append(number & 127 | 128)
        out += bytes(reversed(digits))
    return der(6, bytes(out))


def pair(oid: str, value: bytes) -> bytes:
    return der(0x30, oid_der(oid) + value)


def sgx_extension() -> bytes:
    """What a PCK certificate says of its platform."""
    levels = b"".join(pair(f"{_SGX}.2.{number}", der(2, bytes([SVN]))) for number in range(1, 17))
    levels += pair(f"{_SGX}.2.17", der(2, bytes([SVN]))) + pair(f"{_SGX}.2.18", der(4, bytes([SVN]) * 16))
    parts = (
        pair(f"{_SGX}.1", der(4, b"\x11" * 16)),
        pair(f"{_SGX}.2", der(0x30, levels)),
        pair(f"{_SGX}.3", der(4, bytes(2))),
        pair(f"{_SGX}.4", der(4, FMSPC)),
        pair(f"{_SGX}.5", der(10, b"\x00")),
    )
    return der(0x30, b"".join(parts))


def named(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
        ]
    )


@dataclass(frozen=True)
class FakeTdx:
    """`root` names the test root; `status` is what its service says of the firmware."""

    root: str = "tdx root"
    status: str = "UpToDate"
    changes: dict[str, Any] = field(default_factory=dict)

    def _certificate(
        self, subject: str, issuer: str, *, ca: bool, signer: str, holder: str, more: bytes = b""
    ) -> bytes:
        usage = x509.KeyUsage(
            digital_signature=not ca,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=ca,
            crl_sign=ca,
            encipher_only=False,
            decipher_only=False,
        )
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key(signer).public_key())
        identifier = x509.SubjectKeyIdentifier.from_public_key(key(holder).public_key())
        point = x509.DistributionPoint([x509.UniformResourceIdentifier("https://example.test/crl")], None, None, None)
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(issuer))
            .public_key(key(holder).public_key())
            .serial_number(int.from_bytes(hashlib.sha256(holder.encode()).digest()[:8], "big") >> 1 | 1)
            .not_valid_before(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(2036, 1, 1, tzinfo=datetime.UTC))
            .add_extension(authority, critical=False)
            .add_extension(x509.CRLDistributionPoints([point]), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(usage, critical=True)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if more:
            builder = builder.add_extension(x509.UnrecognizedExtension(ObjectIdentifier(_SGX), more), critical=False)
        return builder.sign(key(signer), hashes.SHA256()).public_bytes(Encoding.PEM)

    @functools.cached_property
    def root_pem(self) -> bytes:
        name = "Intel SGX Root CA"
        return self._certificate(name, name, ca=True, signer=self.root, holder=self.root)

    @property
    def root_der(self) -> bytes:
        return x509.load_pem_x509_certificate(self.root_pem).public_bytes(Encoding.DER)

    @property
    def root_digest(self) -> str:
        return hashlib.sha256(self.root_der).hexdigest()

    @functools.cached_property
    def platform_pem(self) -> bytes:
        names = ("Intel SGX PCK Platform CA", "Intel SGX Root CA")
        return self._certificate(*names, ca=True, signer=self.root, holder=f"{self.root}/platform")

    @functools.cached_property
    def pck_pem(self) -> bytes:
        names = ("Intel SGX PCK Certificate", "Intel SGX PCK Platform CA")
        signer, holder = f"{self.root}/platform", f"{self.root}/pck"
        return self._certificate(*names, ca=False, signer=signer, holder=holder, more=sgx_extension())

    @functools.cached_property
    def signing_pem(self) -> bytes:
        names = ("Intel SGX TCB Signing", "Intel SGX Root CA")
        return self._certificate(*names, ca=False, signer=self.root, holder=f"{self.root}/tcb")

    def _crl(self, issuer: str, signer: str) -> bytes:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key(signer).public_key())
        builder = x509.CertificateRevocationListBuilder().issuer_name(named(issuer))
        builder = builder.last_update(ISSUED).next_update(NEXT).add_extension(x509.CRLNumber(1), critical=False)
        builder = builder.add_extension(authority, critical=False)
        return builder.sign(key(signer), hashes.SHA256()).public_bytes(Encoding.DER)

    def collateral(self) -> str:
        """What Intel's service would say of this platform."""
        import dcap_qvl

        dates = {"issueDate": ISSUED.strftime(_P), "nextUpdate": NEXT.strftime(_P), "tcbEvaluationDataNumber": 17}
        at = {"tcbDate": "2026-06-01T00:00:00Z", "tcbStatus": self.status}
        components = [{"svn": SVN} for _ in range(16)]
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        tcb_info = {
            "id": "TDX",
            "version": 3,
            **dates,
            "fmspc": FMSPC.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tdxModule": module,
            "tdxModuleIdentities": [
                {"id": "TDX_05", **module, "tcbLevels": [{"tcb": {"isvsvn": SVN}, **at, "tcbStatus": "UpToDate"}]}
            ],
            "tcbLevels": [
                {"tcb": {"sgxtcbcomponents": components, "pcesvn": SVN, "tdxtcbcomponents": components}, **at}
            ],
        }
        qe_identity = {
            "id": "TD_QE",
            "version": 2,
            **dates,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": "DC" * 32,
            "isvprodid": 2,
            "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": at["tcbDate"], "tcbStatus": "UpToDate"}],
        }
        tcb_text, qe_text = (json.dumps(one, separators=(",", ":")) for one in (tcb_info, qe_identity))
        signer, chain = key(f"{self.root}/tcb"), (self.signing_pem + self.root_pem).decode()
        found: str = dcap_qvl.QuoteCollateralV3(
            pck_crl_issuer_chain=(self.platform_pem + self.root_pem).decode(),
            root_ca_crl=self._crl("Intel SGX Root CA", self.root),
            pck_crl=self._crl("Intel SGX PCK Platform CA", f"{self.root}/platform"),
            tcb_info_issuer_chain=chain,
            tcb_info=tcb_text,
            tcb_info_signature=raw_sign(signer, tcb_text.encode()),
            qe_identity_issuer_chain=chain,
            qe_identity=qe_text,
            qe_identity_signature=raw_sign(signer, qe_text.encode()),
        ).to_json()
        return found

    def report(
        self,
        bind: bytes,
        *,
        attributes: bytes = bytes.fromhex("0000001000000000"),
        mr_td: bytes = b"\x7d" * 48,
        rtmr: bytes = b"\x01" * 48,
        more_data: bytes = bytes(32),
    ) -> bytes:
        """A TDREPORT (TD 1.0), 584 bytes."""
        seam = bytes([SVN, 5] + [SVN] * 14) + bytes(48 + 48 + 8)
        measured = mr_td + bytes(48 * 3) + rtmr * 4
        return seam + attributes + struct.pack("<Q", 0x600E7) + measured + (bind + more_data)[:64]

    def quote(self, bind: bytes, **report: bytes) -> bytes:
        head = struct.pack("<HHIHH", 4, 2, 0x81, 0, 0) + QE_VENDOR + bytes(20)
        signed = head + self.report(bind, **report)
        attester = key(f"{self.root}/attester")
        point = attester.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        more = b"\x20" * 32
        enclave = bytes([SVN]) * 16 + bytes(4 + 28) + bytes.fromhex("11000000000000000000000000000000") + b"\x0e" * 32
        enclave += bytes(32) + b"\xdc" * 32 + bytes(96) + struct.pack("<HH", 2, 4) + bytes(60)
        enclave += hashlib.sha256(point + more).digest() + bytes(32)
        chain = self.pck_pem + self.platform_pem + self.root_pem
        inner = enclave + raw_sign(key(f"{self.root}/pck"), enclave) + struct.pack("<H", len(more)) + more
        inner += struct.pack("<HI", 5, len(chain)) + chain
        auth = raw_sign(attester, signed) + point + struct.pack("<HI", 6, len(inner)) + inner
        return signed + struct.pack("<I", len(auth)) + auth

    def proof(self, bind: bytes, **parts: object) -> bytes:
        """`parts` replaces quote or collateral."""
        made = {"quote": self.quote(bind), "collateral": self.collateral()} | parts
        return cbor.encode([made["quote"], made["collateral"]])  # type: ignore[list-item]
