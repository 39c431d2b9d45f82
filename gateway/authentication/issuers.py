"""Who may issue tokens: `tokens/issuers.toml` and the key sets that it names.

    [[issuer]]
    name = "https://issuer.example"   # the exact `iss` claim
    jwks = "jwks.json"                # a JWK set (RFC 7517), relative to this file; public keys only
    algorithms = ["ES256"]            # of ES256, EdDSA, RS256
    max_lifetime_s = 3600             # a token that lives longer is refused
    tenants = ["clinic"]              # whom it may speak for; left out or empty: any tenant

Read once at start. Trusts: whoever may write these files. Never: fetches a key from anywhere, accepts a symmetric or
private key, or a key too small. A key is bound to its one algorithm here, so no token can choose how it is verified.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from gateway.limits import MAX_ISSUERS, MAX_JWKS, MAX_KEYS, MAX_LIFETIME_S, MAX_RSA_BITS, MIN_RSA_BITS
from sealgate.errors import ConfigurationError

FILE = "issuers.toml"
ALGORITHMS = ("ES256", "EdDSA", "RS256")

# (kty, crv) to the one algorithm that such a key verifies.
_ALGORITHM_OF = {("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA", ("RSA", None): "RS256"}


class _Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    jwks: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    algorithms: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("ES256",)
    max_lifetime_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIFETIME_S)] = 3600
    tenants: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    issuer: Annotated[tuple[_Issuer, ...], msgspec.Meta(max_length=MAX_ISSUERS)] = ()


@dataclass(frozen=True)
class Issuer:
    """A token issuer with its public keys by `kid`. Each key knows its one algorithm."""

    name: str
    keys: dict[str, jwt.PyJWK]
    max_lifetime_s: int
    tenants: frozenset[str]


def load_issuers(directory: Path) -> dict[str, Issuer]:
    """The issuers of `directory/issuers.toml` by name. Raises ConfigurationError that says what to mend."""
    path = directory / FILE
    try:
        file = msgspec.convert(tomllib.loads(_read(path).decode()), _File)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    issuers: dict[str, Issuer] = {}
    for item in file.issuer:
        if item.name in issuers:
            raise ConfigurationError(f"{path}: issuer '{item.name}' is there twice")
        unknown = set(item.algorithms) - set(ALGORITHMS)
        if unknown:
            raise ConfigurationError(f"{path}: algorithm '{min(unknown)}' is not one of {', '.join(ALGORITHMS)}")
        keys = load_jwks(directory / item.jwks, algorithms=item.algorithms)
        issuers[item.name] = Issuer(item.name, keys, item.max_lifetime_s, frozenset(item.tenants))
    return issuers


def load_jwks(path: Path, *, algorithms: tuple[str, ...]) -> dict[str, jwt.PyJWK]:
    """The keys of a JWK set that verify one of `algorithms`, by `kid`.

    Keys for encryption or of other kinds are passed over, as an issuer may publish them too; a key that is private,
    symmetric, too small or nameless is an error, because then the file is not what its writer thinks it is.
    """
    try:
        document = msgspec.json.decode(_read(path))
        members = document["keys"]
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise TypeError
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: not a JWK set ({{'keys': [...]}})") from error
    if len(members) > MAX_KEYS:
        raise ConfigurationError(f"{path}: more than {MAX_KEYS} keys")
    keys: dict[str, jwt.PyJWK] = {}
    for index, member in enumerate(members):
        where = f"{path}: keys[{index}]"
        key = _parse_key(member, algorithms=algorithms, where=where)
        if key is None:
            continue
        kid = member.get("kid")
        if not isinstance(kid, str) or not kid:
            raise ConfigurationError(f"{where}: needs a 'kid'")
        if kid in keys:
            raise ConfigurationError(f"{where}: kid '{kid}' is there twice")
        keys[kid] = key
    if not keys:
        raise ConfigurationError(f"{path}: has no key for {', '.join(algorithms)}")
    return keys


def _parse_key(member: dict[str, Any], *, algorithms: tuple[str, ...], where: str) -> jwt.PyJWK | None:
    kty = member.get("kty")
    if kty == "oct" or any(name in member for name in ("d", "k", "p", "q")):
        raise ConfigurationError(
            f"{where}: is a private or symmetric key; a JWK set for verifying holds public keys only"
        )
    algorithm = _ALGORITHM_OF.get((str(kty), None if kty == "RSA" else member.get("crv")))
    if algorithm not in algorithms or member.get("use", "sig") != "sig" or member.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(member, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(f"{where}: is not a valid {kty} public key") from error
    if isinstance(key.key, RSAPublicKey) and not MIN_RSA_BITS <= key.key.key_size <= MAX_RSA_BITS:
        raise ConfigurationError(f"{where}: RSA keys must have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JWKS + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_JWKS:
        raise ConfigurationError(f"{path}: larger than {MAX_JWKS} bytes")
    return data
