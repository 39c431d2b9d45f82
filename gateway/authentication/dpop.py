"""A proof of possession becomes a `VerifiedProof`, or nothing at all: the checks of RFC 9449 section 4.3.

    1  size and shape: a compact JWS of strict JSON
    2  the header says dpop+jwt, an asymmetric algorithm and a public key, and brings nothing else that has a meaning
    3  the key is the one that the token names (`cnf.jkt`)
    4  the signature holds
    5  the claims are there, and are for this method, this URL, this token, and now
    6  the nonce is one that we handed out lately

The nonce is last on purpose. RFC 9449 section 9 has a proof without a current nonce answered in a way of its own, so
that honest clients can try again; since everything else held by then, only who has a good token and its key ever sees
that answer, and learns from it nothing that they did not know. The URL is compared with what the deployment is called,
never with a Host field, and two writings of the same URL count as one (section 4.3, RFC 3986 section 6.2).

Trusts: the token's verifier for `jkt`. Never: decides whether a proof was used before; `gateway.authentication.proofs`
does, and a proof does not count until it did.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from gateway.authentication.compact import parse_compact
from gateway.authentication.nonces import Nonces
from gateway.authentication.proof_keys import ALGORITHMS, parse_callers_key, require_signature
from gateway.errors import Unauthenticated
from gateway.limits import MAX_PROOF, MAX_PROOF_ID, PROOF_AGE_S, PROOF_AHEAD_S
from sealgate.errors import DecodeError
from sealgate.protocol.dpop import MAX_URL, TYPE, target_url, token_hash

# Header parameters that bring another key, an extension or a transformation along. None is understood.
_FORBIDDEN = frozenset({"jku", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip", "enc", "cty"})

_Time = Annotated[int, msgspec.Meta(ge=1, lt=2**40)]
_Identifier = Annotated[str, msgspec.Meta(pattern=rf"^[\x20-\x7e]{{1,{MAX_PROOF_ID}}}\Z")]


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9449 section 4.2."""

    jti: _Identifier
    htm: Annotated[str, msgspec.Meta(max_length=32)]
    htu: Annotated[str, msgspec.Meta(max_length=MAX_URL)]
    iat: _Time
    ath: Annotated[str, msgspec.Meta(max_length=64)]
    nonce: Annotated[str, msgspec.Meta(max_length=MAX_PROOF_ID)] | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, kw_only=True)
class VerifiedProof:
    """Holding one proves: whoever made it had the key `jkt`, and made it lately for this request with this token. It
    does not prove that it was not used before: remember `jti` until `expires_us`."""

    jkt: str
    jti: str
    nonce: str
    expires_us: int


def accepted_targets(base_urls: Collection[str], path: str) -> frozenset[str]:
    """What `htu` may be: the request's path below each of the deployment's base URLs, in normal form."""
    try:
        return frozenset(target_url(base.rstrip("/") + path) for base in base_urls)
    except DecodeError:
        return frozenset()  # a path that no URL can have


def verify_proof(
    proof: str, *, jkt: str, method: str, targets: Collection[str], access_token: str, nonces: Nonces, now_us: int
) -> VerifiedProof:
    """The proof in a DPoP field; raises Unauthenticated with the reason. `jkt` is what the token is bound to."""
    if len(proof) > MAX_PROOF:  # 1
        raise Unauthenticated("proof-too-large")
    try:
        parts = parse_compact(proof)
    except DecodeError:
        raise Unauthenticated("proof-malformed") from None
    algorithm = _require_plain_header(parts.header)  # 2
    key = parse_callers_key(parts.header.get("jwk"))
    if key.thumbprint != jkt:  # 3
        raise Unauthenticated("proof-key-mismatch")
    require_signature(key, algorithm, signature=parts.signature, signed=parts.signed)  # 4
    try:  # 5
        claims = msgspec.convert(parts.payload, _Claims)
    except msgspec.ValidationError:
        raise Unauthenticated("proof-claims-invalid") from None
    _require_this_request(claims, method=method, targets=targets, access_token=access_token)
    _require_lately(claims.iat, now_us)
    if claims.nonce is msgspec.UNSET or not nonces.counts(claims.nonce):  # 6
        raise Unauthenticated("proof-nonce-stale")
    expires_us = (claims.iat + PROOF_AGE_S) * 1_000_000
    return VerifiedProof(jkt=jkt, jti=claims.jti, nonce=claims.nonce, expires_us=expires_us)


def _require_plain_header(header: dict[str, Any]) -> str:
    if not _FORBIDDEN.isdisjoint(header):
        raise Unauthenticated("proof-header-forbidden")
    kind, algorithm = header.get("typ"), header.get("alg")
    if not isinstance(kind, str) or kind.lower() not in (TYPE, f"application/{TYPE}"):
        raise Unauthenticated("proof-type-mismatch")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise Unauthenticated("proof-algorithm-refused")
    return algorithm


def _require_this_request(claims: _Claims, *, method: str, targets: Collection[str], access_token: str) -> None:
    if claims.htm != method:
        raise Unauthenticated("proof-method-mismatch")
    try:
        target = target_url(claims.htu)
    except DecodeError:
        raise Unauthenticated("proof-url-mismatch") from None
    if target not in targets:
        raise Unauthenticated("proof-url-mismatch")
    if claims.ath != token_hash(access_token):
        raise Unauthenticated("proof-token-mismatch")


def _require_lately(iat: int, now_us: int) -> None:
    if now_us >= (iat + PROOF_AGE_S) * 1_000_000:
        raise Unauthenticated("proof-expired")
    if now_us < (iat - PROOF_AHEAD_S) * 1_000_000:
        raise Unauthenticated("proof-not-yet-valid")
