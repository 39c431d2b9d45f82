"""What both ends of a proof of possession (DPoP, RFC 9449) must compute alike: key names, token hash, target, form.

A proof is a small signed JSON object that a client makes for one request. The key that signs it is named by the token
(`cnf.jkt`), so a token without its key is worth nothing. Client and gateway share this module; what a proof must say to
count stands in the gateway. Pure. Trusts nothing. Never: touches a private key, or says whether a signature holds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from sealgate.errors import DecodeError
from sealgate.protocol.canonical import canonical_json

TYPE = "dpop+jwt"
SCHEME = "DPoP"
MAX_URL = 2048

ProofKey = EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey

CURVES = {"secp256r1": ("P-256", "ES256", 32), "secp384r1": ("P-384", "ES384", 48)}
"""By the library's name of a curve: its name in a JWK, its algorithm, the bytes of a coordinate (RFC 7518)."""

_REQUIRED = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}
_URL = re.compile(r"([A-Za-z]+)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::([0-9]{0,5}))?(/[^?#]*)?(?:[?#].*)?")
_VISIBLE = re.compile(rf"[\x21-\x7e]{{1,{MAX_URL}}}")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def to_base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    """The bytes of the one base64url text that stands for them: no padding, no stray bits. Raises DecodeError."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError("not base64url") from error
    if to_base64url(data) != text:
        raise DecodeError("not the one base64url form of its bytes")
    return data


def public_jwk(key: ProofKey) -> dict[str, str]:
    """The required members of a public key as a JWK (RFC 7517, RFC 8037). Raises DecodeError for other curves."""
    if isinstance(key, Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(key.public_bytes_raw())}
    if isinstance(key, RSAPublicKey):
        numbers = key.public_numbers()
        n, e = (value.to_bytes((value.bit_length() + 7) // 8) for value in (numbers.n, numbers.e))
        return {"kty": "RSA", "n": to_base64url(n), "e": to_base64url(e)}
    if key.curve.name not in CURVES:
        raise DecodeError("the curve is neither P-256 nor P-384")
    name, _, size = CURVES[key.curve.name]
    point = key.public_numbers()
    return {
        "kty": "EC",
        "crv": name,
        "x": to_base64url(point.x.to_bytes(size)),
        "y": to_base64url(point.y.to_bytes(size)),
    }


def thumbprint(jwk: Mapping[str, str]) -> str:
    """RFC 7638: SHA-256 over the required members alone. It is what `cnf.jkt` of a token names."""
    members = {name: jwk[name] for name in _REQUIRED[jwk["kty"]]}
    return to_base64url(hashlib.sha256(canonical_json(members)).digest())


def token_hash(token: str) -> str:
    """The claim `ath` (RFC 9449 section 4.2): which access token a proof goes with."""
    return to_base64url(hashlib.sha256(token.encode("ascii")).digest())


def target_url(url: str) -> str:
    """The claim `htu` for an absolute HTTPS URL: no query, no fragment, in the normal form of RFC 3986 section 6.2.2
    and 6.2.3 (case, escapes, default port, empty path). Dot segments stay as they are. Raises DecodeError.
    """
    match = _URL.fullmatch(url) if _VISIBLE.fullmatch(url) else None
    if match is None or match[1].lower() != "https":
        raise DecodeError("not an absolute https URL")
    port = f":{int(match[3])}" if match[3] and int(match[3]) != 443 else ""
    return f"https://{match[2].lower()}{port}{_ESCAPE.sub(_normal_escape, match[4] or '/')}"


def _normal_escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()
