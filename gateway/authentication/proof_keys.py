"""The public key that a proof of possession brings along (RFC 9449 section 4.2), and signatures by it.

A key from a caller is an input like any other: its kind, size and form are checked before anything is computed with it,
and it decides which algorithm it may be used with (RFC 8725 section 3.1), except that an RSA key may have signed by
PS256 or RS256. That a signature holds proves that the caller has the key; whether it is the right key, the token says.

Trusts: nothing. Never: takes a private or symmetric key, follows a URL to one, or takes a point under which anything
is signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from gateway.errors import Unauthenticated
from gateway.limits import MAX_PROOF_RSA_BITS, MIN_RSA_BITS
from sealgate.errors import DecodeError
from sealgate.protocol.dpop import ProofKey, from_base64url, thumbprint

ALGORITHMS = ("ES256", "ES384", "EdDSA", "PS256", "RS256")

_EC: dict[str, tuple[ec.EllipticCurve, str, int]] = {
    "P-256": (ec.SECP256R1(), "ES256", 32),
    "P-384": (ec.SECP384R1(), "ES384", 48),
}
PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518 sections 6.2.2, 6.3.2, 6.4
_ELSEWHERE = frozenset({"x5u", "x5c", "jku"})
_EXPONENTS = frozenset({3, 65537})

# Points of Ed25519 whose order divides 8, by y: everything and nothing is signed under them. What lies above the prime
# is refused as well, because it is a second way to write a point.
_P = 2**255 - 19
_Y_OF_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_WEAK_Y = frozenset({0, 1, _P - 1, _Y_OF_ORDER_8, _P - _Y_OF_ORDER_8})

_UNFIT = (DecodeError, KeyError, TypeError, ValueError, UnsupportedAlgorithm)


@dataclass(frozen=True)
class CallersKey:
    """A public key of an accepted kind, with its RFC 7638 thumbprint and the algorithms that it may be used with."""

    key: ProofKey
    algorithms: tuple[str, ...]
    thumbprint: str


def parse_callers_key(jwk: object) -> CallersKey:
    """The key in a proof's header; raises Unauthenticated."""
    if (
        not isinstance(jwk, dict)
        or not (PRIVATE_MEMBERS | _ELSEWHERE).isdisjoint(jwk)
        or jwk.get("use", "sig") != "sig"
    ):
        raise Unauthenticated("proof-key-refused")
    try:
        key, algorithms = _parse(jwk)
        name = thumbprint(jwk)  # `_parse` takes each number in its one form, so this is the key's and not a text's
    except _UNFIT:
        raise Unauthenticated("proof-key-refused") from None
    stated = jwk.get("alg")
    return CallersKey(key, tuple(one for one in algorithms if stated in (None, one)), name)


def _parse(jwk: dict[str, Any]) -> tuple[ProofKey, tuple[str, ...]]:
    match jwk["kty"]:
        case "EC":
            curve, algorithm, size = _EC[jwk["crv"]]
            x, y = (_sized(jwk[name], size) for name in ("x", "y"))
            return ec.EllipticCurvePublicNumbers(x, y, curve).public_key(), (algorithm,)
        case "OKP" if jwk["crv"] == "Ed25519":
            raw = from_base64url(jwk["x"])
            require_sound_point(raw)
            return Ed25519PublicKey.from_public_bytes(raw), ("EdDSA",)
        case "RSA":
            n, e = (_whole(jwk[name]) for name in ("n", "e"))
            if not MIN_RSA_BITS <= n.bit_length() <= MAX_PROOF_RSA_BITS or e not in _EXPONENTS:
                raise DecodeError("too small, too large, or an unusual exponent")
            return rsa.RSAPublicNumbers(e, n).public_key(), ("PS256", "RS256")
    raise DecodeError("another kind of key")


def require_sound_point(raw: bytes) -> None:
    """Raises DecodeError for an encoded point of Ed25519 that may not be anybody's key."""
    y = int.from_bytes(raw, "little") & (2**255 - 1)  # the sign of x stands in the top bit
    if y >= _P or y in _WEAK_Y:
        raise DecodeError("a weak point")


def _sized(text: str, size: int) -> int:
    data = from_base64url(text)
    if len(data) != size:
        raise DecodeError("a coordinate of another size")
    return int.from_bytes(data)


def _whole(text: str) -> int:
    data = from_base64url(text)
    if not data or data[0] == 0:
        raise DecodeError("a number with leading zeros")
    return int.from_bytes(data)


def require_signature(callers: CallersKey, algorithm: str, *, signature: bytes, signed: bytes) -> None:
    """Raises Unauthenticated unless `signature` over `signed` holds under the key by `algorithm`."""
    if algorithm not in callers.algorithms:
        raise Unauthenticated("proof-algorithm-refused")
    key = callers.key
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, signed)
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, _rsa_padding(algorithm), SHA256())
        else:
            half = (key.key_size + 7) // 8
            if len(signature) != 2 * half:  # RFC 7518 section 3.4
                raise InvalidSignature
            r, s = int.from_bytes(signature[:half]), int.from_bytes(signature[half:])
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256() if half == 32 else SHA384()))
    except (InvalidSignature, ValueError):
        raise Unauthenticated("proof-signature-invalid") from None


def _rsa_padding(algorithm: str) -> padding.AsymmetricPadding:
    if algorithm == "PS256":  # RFC 7518 section 3.5: the salt is as long as the hash
        return padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=SHA256.digest_size)
    return padding.PKCS1v15()
