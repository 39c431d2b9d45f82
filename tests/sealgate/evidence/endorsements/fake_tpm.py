"""A TPM's structures made by hand, with every part open to a test's meddling. Lives under tests only."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sealgate.protocol import cbor

# fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign
ATTRIBUTES = 0x00050472


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


@dataclass
class FakeTpm:
    """An ECC or RSA attestation key and its registers."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    registers: dict[int, bytes] = field(default_factory=lambda: {0: b"\x00" * 32, 7: b"\x07" * 32, 10: b"\x0a" * 32})
    attributes: int = ATTRIBUTES
    name_algorithm: int = 0x0B
    scheme: int = 0x14  # of RSA

    def public(self) -> bytes:
        key = self.key.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            numbers = key.public_numbers()
            modulus = numbers.n.to_bytes(key.key_size // 8, "big")
            exponent = 0 if numbers.e == 65537 else numbers.e
            shape = struct.pack(">HHHHI", 0x10, self.scheme, 0x0B, key.key_size, exponent) + sized(modulus)
            kind = 0x01
        else:
            point = key.public_numbers()
            curve, width = {"secp256r1": (3, 32), "secp384r1": (4, 48), "secp521r1": (5, 66)}[key.curve.name]
            x, y = point.x.to_bytes(width, "big"), point.y.to_bytes(width, "big")
            shape = struct.pack(">HHHHH", 0x10, 0x18, 0x0B, curve, 0x10) + sized(x) + sized(y)
            kind = 0x23
        return struct.pack(">HHI", kind, self.name_algorithm, self.attributes) + sized(b"") + shape

    @property
    def name(self) -> str:
        return "000b" + hashlib.sha256(self.public()).hexdigest()

    def attest(
        self,
        extra: bytes,
        *,
        magic: int = 0xFF544347,
        kind: int = 0x8018,
        bank: int = 0x0B,
        banks: int = 1,
        digest: bytes | None = None,
        trailing: bytes = b"",
    ) -> bytes:
        mask = sum(1 << index for index in self.registers).to_bytes(3, "little")
        seen = hashlib.sha256(b"".join(self.registers[index] for index in sorted(self.registers))).digest()
        return (
            struct.pack(">IH", magic, kind)
            + sized(b"\x00\x0bqualified name of 34 bytes.......")
            + sized(extra)
            + bytes(17 + 8)
            + struct.pack(">IHB", banks, bank, 3)
            + mask
            + sized(seen if digest is None else digest)
            + trailing
        )

    def sign(self, attest: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
            made = self.key.sign(attest, pss if self.scheme == 0x16 else padding.PKCS1v15(), hashes.SHA256())
            return struct.pack(">HH", self.scheme, 0x0B) + sized(made)
        r, s = decode_dss_signature(self.key.sign(attest, ec.ECDSA(hashes.SHA256())))
        width = (self.key.key_size + 7) // 8
        return struct.pack(">HH", 0x18, 0x0B) + sized(r.to_bytes(width, "big")) + sized(s.to_bytes(width, "big"))

    def proof(self, bind: bytes, **parts: object) -> bytes:
        """The endorsement's proof; `parts` replaces attest, signature, public or registers."""
        attest = parts.get("attest", self.attest(bind))
        assert isinstance(attest, bytes)
        values = parts.get("registers", dict(self.registers))
        listed = [attest, parts.get("signature", self.sign(attest)), parts.get("public", self.public()), values]
        return cbor.encode(listed)  # type: ignore[arg-type]
