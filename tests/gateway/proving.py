"""Proofs of possession made by another library (PyJWT), honest ones and every kind of wrong one."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KINDS = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": Ed25519PrivateKey.generate,
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Prover:
    """A key, and proofs by it."""

    def __init__(self, algorithm: str = "ES256") -> None:
        self.algorithm = algorithm
        self.key: Any = KINDS[algorithm]()
        maker: Any = jwt.get_algorithm_by_name(algorithm)
        self.jwk: dict[str, Any] = json.loads(maker.to_jwk(self.key.public_key()))
        self.jwk.pop("key_ops", None)

    @property
    def jkt(self) -> str:
        """RFC 7638, written down once more."""
        names = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}[self.jwk["kty"]]
        text = "{" + ",".join(f'"{name}":"{self.jwk[name]}"' for name in names) + "}"
        return b64(hashlib.sha256(text.encode()).digest())

    def header(self, **changes: Any) -> dict[str, Any]:
        return _without_none({"typ": "dpop+jwt", "alg": self.algorithm, "jwk": self.jwk, **changes})

    def claims(self, token: str, **changes: Any) -> dict[str, Any]:
        ath = b64(hashlib.sha256(token.encode()).digest())
        return _without_none({"jti": str(uuid.uuid4()), "ath": ath, **changes})

    def sign(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.key, algorithm=self.algorithm, headers=header)

    def sign_text(self, header: str, claims: str) -> str:
        """For what is no JSON that a library would write."""
        signed = f"{b64(header.encode())}.{b64(claims.encode())}"
        maker: Any = jwt.get_algorithm_by_name(self.algorithm)
        return f"{signed}.{b64(maker.sign(signed.encode(), self.key))}"


def _without_none(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
