"""A GPU and a signer of manifests under roots of their own that say NVIDIA's names. Lives under tests only.

The XML is canonicalised here by hand: the manifest is written in the form that Canonical XML 1.1 gives it, so that the
product's canonicaliser is checked against text instead of against itself.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import struct
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from sealgate.protocol import cbor

DRIVER, VBIOS = "550.90.07", "96.00.9f.00.01"
FIRMWARE = hashlib.sha384(b"firmware").digest()
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
XMLENC = "http://www.w3.org/2001/04/xmlenc#sha384"
DSIG = "http://www.w3.org/2000/09/xmldsig#"
STARTS = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
ENDS = datetime.datetime(2033, 1, 1, tzinfo=datetime.UTC)


def digest_of(index: int) -> bytes:
    return hashlib.sha384(f"measurement {index}".encode()).digest()


def raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


@functools.cache
def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
    return ec.derive_private_key(number, ec.SECP384R1())


@dataclass(frozen=True)
class Chain:
    """Certificates, the signer's first: `names` from the root down."""

    names: tuple[str, ...]
    tag: str = ""  # another one gives other keys
    dice: bytes | None = None
    authority: bool = True
    path_length: int | None = None
    ends: datetime.datetime = ENDS

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return key_of(f"{self.tag}/{self.names[-1]}")

    @functools.cached_property
    def certificates(self) -> list[bytes]:
        found = []
        for place, name in enumerate(self.names):
            issuer = self.names[max(place - 1, 0)]
            leaf = place == len(self.names) - 1
            builder = (
                x509.CertificateBuilder()
                .subject_name(self._named(name))
                .issuer_name(self._named(issuer))
                .public_key(key_of(f"{self.tag}/{name}").public_key())
                .serial_number(place + 1)
                .not_valid_before(STARTS)
                .not_valid_after(self.ends)
            )
            if not leaf:
                constraints = x509.BasicConstraints(
                    ca=self.authority, path_length=self.path_length if self.authority and place == 0 else None
                )
                builder = builder.add_extension(constraints, critical=True)
            elif self.dice is not None:
                extension = x509.UnrecognizedExtension(ObjectIdentifier("2.23.133.5.4.1"), self.dice)
                builder = builder.add_extension(extension, critical=False)
            found.append(builder.sign(key_of(f"{self.tag}/{issuer}"), hashes.SHA384()).public_bytes(Encoding.DER))
        return found[::-1]

    @property
    def root_digest(self) -> str:
        return hashlib.sha256(self.certificates[-1]).hexdigest()

    @staticmethod
    def _named(name: str) -> x509.Name:
        maker = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "NVIDIA")
        return x509.Name([maker, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def dice(firmware: bytes) -> bytes:
    return b"\x30\x81\xba" + bytes(50) + bytes.fromhex("06096086480165030402020430") + firmware


DEVICE = Chain(
    ("NVIDIA Device Identity CA", "NVIDIA GH100 Identity", "GH100 A01 GSP BROM", "GH100 FMC LF"), dice=dice(FIRMWARE)
)
SIGNER = Chain(("NVIDIA CoRIM signing Root CA", "NVIDIA Reference Value L2", "HCC RIM L4 Signer"))


@dataclass(frozen=True)
class FakeGpu:
    """What its reports say; every part can be another one."""

    chain: Chain = DEVICE
    driver: bytes = DRIVER.encode() + b"\x00"
    vbios: bytes = bytes.fromhex("009f009601000000")
    firmware: bytes = FIRMWARE
    blocks: dict[int, bytes] = field(default_factory=lambda: {index: digest_of(index) for index in range(1, 9)})

    def changed(self, **changes: object) -> FakeGpu:
        return replace(self, **changes)  # type: ignore[arg-type]

    def message(
        self, nonce: bytes, *, request: str = "11e001ff", response: str = "11600000", more: bytes = b""
    ) -> bytes:
        """Both messages without the signature."""
        record = b"".join(
            struct.pack("<BBHBH", index, 1, 3 + len(value), 1, len(value)) + value
            for index, value in self.blocks.items()
        )
        fields = {6: self.vbios, 3: self.driver, 20: self.firmware}
        opaque = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in fields.items()) + more
        asked = bytes.fromhex(request) + nonce + b"\x00"
        answered = bytes.fromhex(response) + bytes([len(self.blocks)]) + len(record).to_bytes(3, "little") + record
        return asked + answered + b"\x77" * 32 + len(opaque).to_bytes(2, "little") + opaque

    def report(self, nonce: bytes, **changes: object) -> bytes:
        message = self.message(nonce, **changes)  # type: ignore[arg-type]
        return message + raw(self.chain.key, message)

    def gpu(self, nonce: bytes, **changes: object) -> cbor.Value:
        return [self.report(nonce, **changes), list(self.chain.certificates)]


@dataclass(frozen=True)
class FakeManifest:
    """A signed manifest: index (from 0) to hexadecimal values, active; the gaps are inactive."""

    version: str
    golden: dict[int, list[str]]
    chain: Chain = SIGNER
    algorithm: str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
    uri: str = ""

    def payload(self) -> str:
        lines = []
        for index in range(max(self.golden) + 1):
            values = self.golden.get(index, ["00" * 48])
            named = sorted((f"Hash{place}", value) for place, value in enumerate(values))
            hashed = "".join(f' ns2:{name}="{value}"' for name, value in named)
            # Canonical order: attributes without a namespace by name, then those of ns2.
            lines.append(
                f'<ns0:Resource active="{index in self.golden}" alternatives="{len(values)}" index="{index}"'
                f' name="Measurement &amp; {index}" size="48" type="Measurement"{hashed}></ns0:Resource>'
            )
        return "\n".join(lines)

    def document(self) -> bytes:
        """Written canonically but for the signature, which stands before the end."""
        start = (
            f'<SoftwareIdentity xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="{XMLENC}" name="GH100">\n'
            f'<ns0:Entity name="NVIDIA"></ns0:Entity>\n'
            f'<ns0:Meta colloquialVersion="{self.version}" product="GH100"></ns0:Meta>\n'
            f"<ns0:Payload>{self.payload()}</ns0:Payload>"
        )
        digest = base64.b64encode(hashlib.sha384((start + "</SoftwareIdentity>").encode()).digest()).decode()
        signed = self.signed_info(digest)
        alone = signed.replace("<ds:SignedInfo>", self._apex(), 1)
        value = base64.b64encode(raw(self.chain.key, alone.encode())).decode()
        listed = "".join(
            f"<ds:X509Certificate>{base64.b64encode(der).decode()}</ds:X509Certificate>"
            for der in self.chain.certificates
        )
        return (
            f'{start}<ds:Signature xmlns:ds="{DSIG}">{signed}<ds:SignatureValue>{value}</ds:SignatureValue>'
            f"<ds:KeyInfo><ds:X509Data>{listed}</ds:X509Data></ds:KeyInfo></ds:Signature></SoftwareIdentity>"
        ).encode()

    def signed_info(self, digest: str) -> str:
        c14n = "http://www.w3.org/2006/12/xml-c14n11"
        return (
            f'<ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{c14n}"></ds:CanonicalizationMethod>'
            f'<ds:SignatureMethod Algorithm="{self.algorithm}"></ds:SignatureMethod>'
            f'<ds:Reference URI="{self.uri}"><ds:Transforms>'
            f'<ds:Transform Algorithm="{DSIG}enveloped-signature"></ds:Transform>'
            f'<ds:Transform Algorithm="{c14n}"></ds:Transform></ds:Transforms>'
            '<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"></ds:DigestMethod>'
            f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
        )

    @staticmethod
    def _apex() -> str:
        """On its own, SignedInfo names all namespaces that hold in it, sorted by prefix."""
        return f'<ds:SignedInfo xmlns="{SWID}" xmlns:ds="{DSIG}" xmlns:ns0="{SWID}" xmlns:ns2="{XMLENC}">'


def manifests() -> list[FakeManifest]:
    """Of the driver, and of the firmware, as the fake GPU measures: blocks 1, 3 and 4."""
    return [
        FakeManifest(DRIVER, {2: ["11" * 48, digest_of(3).hex()]}),
        FakeManifest(VBIOS.upper(), {0: [digest_of(1).hex()], 3: [digest_of(4).hex()]}),
    ]


def proof_of(gpus: list[cbor.Value], documents: list[bytes]) -> bytes:
    return cbor.encode([gpus, list(documents)])
