"""A processor that signs SEV-SNP reports, under a root of its own that says AMD's names. Lives under tests only."""

from __future__ import annotations

import datetime
import functools
import hashlib
import struct
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from sealgate.protocol import cbor

AMD = "1.3.6.1.4.1.3704.1"
TCB = {"boot_loader": 4, "tee": 0, "snp": 20, "microcode": 213}
_OIDS = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_BYTES = {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7}
SERIALS = {"ARK-Genoa": 5, "SEV-Genoa": 6, "SEV-VCEK": 7}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """2048 bits, so that tests are quick: the real ones have 4096, and nothing here depends on it."""
    return rsa.generate_private_key(65537, 2048)


def tcb_bytes(parts: dict[str, int]) -> bytes:
    found = bytearray(8)
    for name, value in parts.items():
        found[_BYTES[name]] = value
    return bytes(found)


def named(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


@dataclass(frozen=True)
class FakeChip:
    """`root` names the test root; `chip_id`, `certified` and `days` go into the chip's certificate."""

    root: str = "root"
    chip_id: bytes = b"\xc1" * 64
    certified: dict[str, int] = field(default_factory=lambda: dict(TCB))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.derive_private_key(77, ec.SECP384R1()))
    issuer_is_ca: bool = True
    starts: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    ends: datetime.datetime = datetime.datetime(2033, 1, 1, tzinfo=datetime.UTC)
    wrong_issuer: bool = False

    def changed(self, **changes: object) -> FakeChip:
        return replace(self, **changes)  # type: ignore[arg-type]

    def _build(self, subject: str, issuer: str, key: object) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(issuer))
            .public_key(key)  # type: ignore[arg-type]
            .serial_number(SERIALS[subject])
            .not_valid_before(self.starts)
            .not_valid_after(self.ends)
        )

    def _signed(self, builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey) -> bytes:
        return builder.sign(key, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)

    @functools.cached_property
    def ark(self) -> bytes:
        key = rsa_key(self.root)
        builder = self._build("ARK-Genoa", "ARK-Genoa", key.public_key())
        return self._signed(builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True), key)

    @functools.cached_property
    def ask(self) -> bytes:
        builder = self._build("SEV-Genoa", "ARK-Genoa", rsa_key(f"{self.root}/ask").public_key())
        constraints = x509.BasicConstraints(ca=self.issuer_is_ca, path_length=None)
        return self._signed(builder.add_extension(constraints, critical=True), rsa_key(self.root))

    @functools.cached_property
    def vcek(self) -> bytes:
        issuer = "SEV-Milan" if self.wrong_issuer else "SEV-Genoa"
        builder = self._build("SEV-VCEK", issuer, self.key.public_key())
        for name, value in self.certified.items():
            der = bytes([2, 1, value]) if value < 128 else bytes([2, 2, 0, value])
            oid = ObjectIdentifier(f"{AMD}.{_OIDS[name]}")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, der), critical=False)
        oid = ObjectIdentifier(f"{AMD}.4")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, self.chip_id), critical=False)
        return self._signed(builder, rsa_key(f"{self.root}/ask"))

    @property
    def root_digest(self) -> str:
        return hashlib.sha256(self.ark).hexdigest()

    def report(
        self,
        bind: bytes,
        *,
        version: int = 3,
        policy: int = 0x30000,
        vmpl: int = 0,
        algorithm: int = 1,
        keys: int = 0,
        measurement: bytes = b"\x5a" * 48,
        chip_id: bytes | None = None,
        reported: dict[str, int] | None = None,
        committed: dict[str, int] | None = None,
        family: int = 0x19,
        more_data: bytes = bytes(32),
    ) -> bytes:
        body = bytearray(0x2A0)
        struct.pack_into("<IIQ", body, 0, version, 0, policy)
        struct.pack_into("<II", body, 0x30, vmpl, algorithm)
        struct.pack_into("<I", body, 0x48, keys)
        body[0x50:0x90] = (bind + more_data)[:64].ljust(64, b"\x00")
        body[0x90:0xC0] = measurement
        body[0x180:0x188] = tcb_bytes(TCB if reported is None else reported)
        body[0x188] = family
        body[0x1A0:0x1E0] = self.chip_id if chip_id is None else chip_id
        body[0x1E0:0x1E8] = tcb_bytes(TCB if committed is None else committed)
        r, s = decode_dss_signature(self.key.sign(bytes(body), ec.ECDSA(hashes.SHA384())))
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return bytes(body) + signature.ljust(512, b"\x00")

    def proof(self, bind: bytes, **parts: object) -> bytes:
        """`parts` replaces report, vcek, ask or ark, and adds crl."""
        made = {"report": self.report(bind), "vcek": self.vcek, "ask": self.ask, "ark": self.ark} | parts
        return cbor.encode([made[name] for name in ("report", "vcek", "ask", "ark", "crl") if name in made])  # type: ignore[misc]

    def crl(
        self,
        *revoked: int,
        issuer: str = "ARK-Genoa",
        signer: str = "",
        starts: datetime.datetime | None = None,
        ends: datetime.datetime | None = None,
        extension: x509.ExtensionType | None = None,
        critical: bool = True,
        of_entry: x509.ExtensionType | None = None,
    ) -> bytes:
        """The root's list of revoked serial numbers; `signer` names another key."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(named(issuer))
            .last_update(starts or self.starts)
            .next_update(ends or self.ends)
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self.starts)
            if of_entry is not None:
                entry = entry.add_extension(of_entry, critical=critical)
            builder = builder.add_revoked_certificate(entry.build())
        builder = builder.add_extension(x509.CRLNumber(1), critical=False)
        if extension is not None:
            builder = builder.add_extension(extension, critical=critical)
        signed = builder.sign(rsa_key(signer or self.root), hashes.SHA384(), rsa_padding=PSS)
        return signed.public_bytes(Encoding.DER)
