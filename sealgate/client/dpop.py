"""The client's side of DPoP (RFC 9449): a key, a proof for each request, and the newest nonce of each service.

    key = DpopKey.load("dpop.pem")          # or DpopKey.generate(); register key.jkt, or let a token service bind it
    Session("client/", purpose="treatment", token=read_token, dpop_key=key)

A token that is bound to a key is worth nothing to whoever steals the token alone. Trusts: the file for the key. Never:
prints or sends the private key, uses a proof twice, or follows a service's wish for another proof more than once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.errors import ConfigurationError, DecodeError
from sealgate.protocol.canonical import canonical_json
from sealgate.protocol.dpop import CURVES, TYPE, public_jwk, target_url, thumbprint, to_base64url, token_hash

_MAX_KEY_FILE = 16 * 1024
_NONCE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}\Z")  # RFC 9449 section 8.1
_WANTED = re.compile(r'\berror\s*=\s*"?use_dpop_nonce\b')
_ID_SIZE = 16

_Private = ec.EllipticCurvePrivateKey | Ed25519PrivateKey | rsa.RSAPrivateKey


class DpopKey:
    """A private key that tokens are bound to: P-256, P-384, Ed25519 or RSA. Shows nothing but its thumbprint."""

    __slots__ = ("_algorithm", "_jwk", "_key", "jkt")

    def __init__(self, key: _Private) -> None:
        self._key = key
        self._jwk = public_jwk(key.public_key())
        self._algorithm = _algorithm_of(key)
        self.jkt = thumbprint(self._jwk)  # RFC 7638: what `cnf.jkt` of a token names

    def __repr__(self) -> str:
        return f"DpopKey({self.jkt})"

    def __reduce__(self) -> Any:
        raise TypeError("a private key is not pickled")

    @classmethod
    def generate(cls) -> DpopKey:
        """A new P-256 key, for ES256."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DpopKey:
        """The key in a PEM file without a password; raises ConfigurationError."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(_MAX_KEY_FILE)
        except OSError as error:
            raise ConfigurationError(f"the DPoP key {path} cannot be read: {error.strerror}") from error
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(f"{path} is not a private key in PEM form without a password") from error
        if isinstance(key, ec.EllipticCurvePrivateKey | Ed25519PrivateKey | rsa.RSAPrivateKey):
            try:
                return cls(key)
            except DecodeError as error:
                raise ConfigurationError(f"the DPoP key {path} cannot be used: {error}") from error
        raise ConfigurationError(f"the DPoP key {path} must be P-256, P-384, Ed25519 or RSA")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a new file that its owner alone can read; raises ConfigurationError, also if there is one."""
        data = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        except OSError as error:
            raise ConfigurationError(f"the DPoP key {path} cannot be written: {error.strerror}") from error

    def sign(self, claims: Mapping[str, str | int]) -> str:
        """The claims as a proof (RFC 9449 section 4.2)."""
        header = {"typ": TYPE, "alg": self._algorithm, "jwk": self._jwk}
        text = f"{to_base64url(canonical_json(header))}.{to_base64url(canonical_json(dict(claims)))}"
        return f"{text}.{to_base64url(self._signature(text.encode('ascii')))}"

    def _signature(self, signed: bytes) -> bytes:
        key = self._key
        if isinstance(key, Ed25519PrivateKey):
            return key.sign(signed)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(signed, padding.PSS(padding.MGF1(SHA256()), SHA256.digest_size), SHA256())
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA384() if self._algorithm == "ES384" else SHA256())))
        size = CURVES[key.curve.name][2]  # RFC 7518 section 3.4
        return r.to_bytes(size) + s.to_bytes(size)


def _algorithm_of(key: _Private) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return CURVES[key.curve.name][1]
    return "EdDSA" if isinstance(key, Ed25519PrivateKey) else "PS256"


class Prover:
    """Proofs for one service. Safe to share between threads: the nonce is replaced whole."""

    def __init__(self, key: DpopKey, *, clock: Clock = now_us, entropy: Entropy = random_bytes) -> None:
        self.key = key
        self._clock = clock
        self._entropy = entropy
        self._nonce: str | None = None

    def proof(self, method: str, url: str, *, token: str | None) -> str:
        """A proof for one request, never made twice; with `token`, for a request that carries it."""
        claims: dict[str, str | int] = {
            "jti": to_base64url(self._entropy(_ID_SIZE)),
            "htm": method,
            "htu": target_url(url),
            "iat": self._clock() // 1_000_000,
        }
        if token is not None:
            claims["ath"] = token_hash(token)
        if self._nonce is not None:
            claims["nonce"] = self._nonce
        return self.key.sign(claims)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Remember the nonce of an answer, if it tells one (RFC 9449 section 8.2). Names in lower case."""
        nonce = headers.get("dpop-nonce", "")
        if _NONCE.match(nonce):
            self._nonce = nonce


def wants_nonce(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a resource refused only for want of the nonce that it tells (RFC 9449 section 9)."""
    told = _NONCE.match(headers.get("dpop-nonce", "")) is not None
    return status == 401 and told and _WANTED.search(headers.get("www-authenticate", "")) is not None
