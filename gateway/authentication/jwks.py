"""A JWK set (RFC 7517) becomes the public keys of one issuer, each bound to one algorithm (RFC 8725 section 3.1).

Keys for encryption, of other kinds or for other algorithms are passed over, as an issuer may publish them too. A key
that is private, symmetric, too small, without a name, or ambiguous makes the whole set unusable: then it is not what
its writer thinks it is. Pure. Trusts: nothing in the set but that it came from the issuer. Never: keeps a private key,
or leaves it to a token how a key is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from gateway.authentication.proof_keys import PRIVATE_MEMBERS, require_sound_point
from gateway.limits import MAX_KEYS, MAX_RSA_BITS, MIN_RSA_BITS
from sealgate.errors import ConfigurationError, DecodeError

# (kty, crv) to the algorithms that such a key can verify.
_ALGORITHMS_OF: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
}
ALGORITHMS = tuple(name for names in _ALGORITHMS_OF.values() for name in names)

Keys = Mapping[str, jwt.PyJWK]


class UnfitKeySet(ConfigurationError):
    """A key set that cannot be used; the text says which key and why, and never what it holds."""


def parse_jwks(data: bytes, *, algorithms: Sequence[str], where: str) -> Keys:
    """The keys of a JWK set that verify one of `algorithms`, by `kid`. Raises UnfitKeySet; `where` names the set."""
    try:
        document = msgspec.json.decode(data)
        members = document["keys"]
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise TypeError
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError, TypeError) as error:
        raise UnfitKeySet(f"{where}: not a JWK set ({{'keys': [...]}})") from error
    if len(members) > MAX_KEYS:
        raise UnfitKeySet(f"{where}: more than {MAX_KEYS} keys")
    keys: dict[str, jwt.PyJWK] = {}
    for index, member in enumerate(members):
        at = f"{where}: keys[{index}]"
        key = _parse_key(member, algorithms=algorithms, where=at)
        if key is None:
            continue
        kid = member.get("kid")
        if not isinstance(kid, str) or not kid:
            raise UnfitKeySet(f"{at}: needs a 'kid'")
        if kid in keys:
            raise UnfitKeySet(f"{at}: kid {kid!r} is there twice")
        keys[kid] = key
    if not keys:
        raise UnfitKeySet(f"{where}: has no key for {', '.join(algorithms)}")
    return keys


def _parse_key(member: dict[str, Any], *, algorithms: Sequence[str], where: str) -> jwt.PyJWK | None:
    kty = member.get("kty")
    if kty == "oct" or not PRIVATE_MEMBERS.isdisjoint(member):
        raise UnfitKeySet(f"{where}: is a private or symmetric key; a JWK set for verifying holds public keys only")
    able = _ALGORITHMS_OF.get((str(kty), None if kty == "RSA" else _text(member.get("crv"))), ())
    wanted = [name for name in able if name in algorithms and member.get("alg", name) == name]
    if not wanted or member.get("use", "sig") != "sig" or not _may_verify(member):
        return None
    if len(wanted) > 1:
        raise UnfitKeySet(f"{where}: needs an 'alg', or the issuer only one of {', '.join(wanted)}")
    try:
        key = jwt.PyJWK(member, wanted[0])
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise UnfitKeySet(f"{where}: is not a valid {kty} public key") from error
    _require_strong(key, where)
    return key


def _may_verify(member: dict[str, Any]) -> bool:
    operations = member.get("key_ops", ["verify"])
    return isinstance(operations, list) and "verify" in operations


def _require_strong(key: jwt.PyJWK, where: str) -> None:
    public = key.key
    if isinstance(public, RSAPublicKey) and not MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
        raise UnfitKeySet(f"{where}: RSA keys must have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    if isinstance(public, Ed25519PublicKey):
        try:
            require_sound_point(public.public_bytes_raw())
        except DecodeError as error:
            raise UnfitKeySet(f"{where}: is a point of low order, under which anything is signed") from error


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
