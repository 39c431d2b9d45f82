"""A forger's tools: JOSE made by hand from `cryptography` alone, so that nothing stops the making of what is wrong.

The forger owns two issuers that the gateway trusts ("the realm" and "the other realm"), so that every attack can differ
from a good token in one thing only.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sealgate.ambient import now_us

REALM = "https://idp.example/realm"
OTHER_REALM = "https://other-idp.example"

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

# Points of small order on edwards25519: some signature holds for every message under each of them.
LOW_ORDER = (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
)


def b64(raw: bytes | str) -> str:
    raw = raw.encode() if isinstance(raw, str) else raw
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def part(value: Any) -> str:
    """A header or payload: bytes and text as they are, anything else as JSON."""
    return b64(value if isinstance(value, bytes | str) else json.dumps(value))


def decoded(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unb64(text))
    return found


# Keys ----------------------------------------------------------------------------------------------------------------


@functools.cache
def key(name: str) -> Any:
    """A key pair by name, made once: "p256…", "p384…", "p521…", "ed…", "rsa…" (2048 bits), "rsa1024…"."""
    if name.startswith("rsa1024"):
        return rsa.generate_private_key(65537, 1024)
    if name.startswith("rsa"):
        return rsa.generate_private_key(65537, 2048)
    if name.startswith("ed"):
        return ed25519.Ed25519PrivateKey.generate()
    curve = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}[name[:4]]
    return ec.generate_private_key(curve)


def jwk(public: PublicKey, **members: Any) -> dict[str, Any]:
    """The public members, and whatever else is wanted."""
    if isinstance(public, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw()), **members}
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": b64(_big(numbers.n)), "e": b64(_big(numbers.e)), **members}
    size = (public.curve.key_size + 7) // 8
    point = public.public_numbers()
    curve = {256: "P-256", 384: "P-384", 521: "P-521"}[public.curve.key_size]
    x, y = (b64(value.to_bytes(size, "big")) for value in (point.x, point.y))
    return {"kty": "EC", "crv": curve, "x": x, "y": y, **members}


def thumbprint(public_jwk: Mapping[str, Any]) -> str:
    """RFC 7638: over the required members, in order."""
    names = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}[public_jwk["kty"]]
    text = json.dumps({name: public_jwk[name] for name in names}, separators=(",", ":"))
    return b64(hashlib.sha256(text.encode()).digest())


def _big(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


# Signatures ----------------------------------------------------------------------------------------------------------

_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def raw_ecdsa(private: ec.EllipticCurvePrivateKey, message: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    """r || s, as JWS wants it."""
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(algorithm)))
    size = (private.curve.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def signature(private: PrivateKey, message: bytes, *, alg: str = "") -> bytes:
    """By the key's own kind; `alg` chooses the hash and padding where there is a choice."""
    digest = _HASHES.get(alg[2:], _HASHES["256"])
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(message)
    if isinstance(private, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH)
        return private.sign(message, pss if alg.startswith("PS") else padding.PKCS1v15(), digest)
    return raw_ecdsa(private, message, digest)


def jws(private: PrivateKey, header: Any, payload: Any, *, signed_as: str = "") -> str:
    """A compact JWS over exactly this header and payload."""
    text = f"{part(header)}.{part(payload)}"
    alg = signed_as or (header.get("alg", "") if isinstance(header, dict) else "")
    return f"{text}.{b64(signature(private, text.encode(), alg=alg if isinstance(alg, str) else ''))}"


def mac(secret: bytes, header: Any, payload: Any, *, digest: Callable[..., Any] = hashlib.sha256) -> str:
    text = f"{part(header)}.{part(payload)}"
    return f"{text}.{b64(hmac.digest(secret, text.encode(), digest))}"


# Tokens --------------------------------------------------------------------------------------------------------------

# The realm's signing keys by `kid`: key name and the one algorithm that it is published for.
REALM_KEYS = {"es": ("p256 realm", "ES256"), "ed": ("ed realm", "EdDSA"), "rs": ("rsa realm", "RS256")}
OTHER_KEYS = {"other": ("p256 other realm", "ES256")}


def key_set(keys: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    found = (jwk(key(name).public_key(), kid=kid, alg=alg, use="sig") for kid, (name, alg) in keys.items())
    return {"keys": list(found)}


def issuers_file(algorithms: tuple[str, ...] = ("ES256", "EdDSA", "RS256")) -> str:
    """To stand after what issuers.toml already says."""
    return f"""
[[issuer]]
name = "{REALM}"
jwks = "realm.json"
algorithms = {json.dumps(algorithms)}
max_lifetime_s = 3600
tenants = ["*"]

[[issuer]]
name = "{OTHER_REALM}"
jwks = "other-realm.json"
algorithms = ["ES256"]
max_lifetime_s = 3600
tenants = ["oversight"]
"""


class Forge:
    """Good tokens of the realm for one audience, and whatever may be made of them."""

    def __init__(self, audience: str) -> None:
        self.audience = audience
        self._count = 0

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good claims, changed; a change to `...` leaves the claim out."""
        now = now_us() // 1_000_000
        self._count += 1
        good = {
            "iss": REALM,
            "aud": self.audience,
            "sub": "alice",
            "client_id": "portal",
            "jti": f"forged-{self._count}",
            "iat": now - 5,
            "exp": now + 600,
            "tenant": "clinic",
            "roles": ["client"],
            "purposes": ["treatment"],
        }
        return {name: value for name, value in (good | changes).items() if value is not ...}

    def header(self, key_id: str = "es", /, **changes: Any) -> dict[str, Any]:
        """A good header for that key, changed in the same way."""
        alg = (REALM_KEYS | OTHER_KEYS)[key_id][1]
        good = {"typ": "at+jwt", "alg": alg, "kid": key_id}
        return {name: value for name, value in (good | changes).items() if value is not ...}

    def token(self, key_id: str = "es", /, **changes: Any) -> str:
        """A token with good header and signature; `changes` are of its claims."""
        return self.signed(self.header(key_id), self.claims(**changes), kid=key_id)

    def headed(self, key_id: str = "es", /, **changes: Any) -> str:
        """A token with good claims and signature; `changes` are of its header."""
        return self.signed(self.header(key_id, **changes), self.claims(), kid=key_id)

    @staticmethod
    def signed(header: Any, payload: Any, *, kid: str = "es") -> str:
        name, alg = (REALM_KEYS | OTHER_KEYS)[kid]
        return jws(key(name), header, payload, signed_as=alg)

    def written(self, name: str, literal: str) -> str:
        """A token whose claim `name` is written as exactly `literal` in the JSON."""
        text = json.dumps(self.claims(**{name: "@@"})).replace('"@@"', literal)
        return self.signed(self.header(), text)
