"""An access token becomes a `VerifiedToken`, or nothing at all (RFC 9068 section 4, RFC 8725).

    1  size and shape: three base64url parts, each in its one canonical form, no more than MAX_TOKEN bytes
    2  the header names an allowed algorithm and nothing that brings its own key or rules
    3  the issuer is configured, takes this type of token and holds that key; the key's own algorithm is the token's
    4  the signature holds (PyJWT)
    5  every required claim is there, of the exact type, for this audience, from now on and not for too long
    6  it is not revoked

Every way to fail is one `Unauthenticated`; its reason goes to the log only. Tokens that verified are remembered by the
SHA-256 of their whole text until they expire; what can change in the meantime (time, keys, revocations) is asked every
time. ECDSA signatures are not unique: whoever has a token can make a second text of it with another `s`. Issuers do
not choose the smaller one, so refusing the other would refuse honest tokens; nothing here is decided by a token's text
alone: revocation goes by `jti` and subject, and the text that a request is bound to is the one that it carried.

Trusts: the issuers' keys and the clock. Never: keeps a token's text, takes a key or an algorithm from a token, or says
to a caller which step failed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from gateway.authentication.claims import (
    JWT,
    Confirmation,
    Registered,
    VerifiedToken,
    apply_rules,
    parse_registered,
    require_access_token,
)
from gateway.authentication.compact import parse_compact
from gateway.authentication.issuers import TYPES, Issuer
from gateway.authentication.jwks import ALGORITHMS
from gateway.authentication.key_sets import KeySet, KeySets
from gateway.authentication.revocations import Revocations
from gateway.errors import Unauthenticated
from gateway.limits import CLOCK_SKEW_S, MAX_TOKEN, MAX_VERIFIED_TOKENS
from sealgate.ambient import Clock, now_us
from sealgate.errors import DecodeError

__all__ = ["Confirmation", "TokenVerifier", "VerifiedToken", "parse_unverified"]

_JWS = jwt.PyJWS(algorithms=list(ALGORITHMS))
# Header parameters that bring a key, an extension or a transformation along. None is understood, so none is accepted.
_FORBIDDEN = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc", "cty"})


@dataclass(slots=True)
class _Remembered:
    """A token that verified, with what must still be so when it comes again."""

    token: VerifiedToken
    keys: KeySet
    kid: str
    key: jwt.PyJWK
    accepted_by: int  # the generation of revocations that let it pass


class TokenVerifier:
    """Verifies and remembers. One per process, used from its event loop only."""

    def __init__(
        self,
        issuers: Mapping[str, Issuer],
        *,
        key_sets: KeySets,
        revocations: Revocations,
        audience: str,
        clock: Clock = now_us,
        remembered_max: int = MAX_VERIFIED_TOKENS,
    ) -> None:
        self._issuers = issuers
        self._key_sets = key_sets
        self._revocations = revocations
        self._audience = audience
        self._clock = clock
        self._remembered_max = remembered_max
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    def verify_remembered(self, token: str) -> VerifiedToken | None:
        """The token if it verified before and still counts; None if it must be verified anew. Raises Unauthenticated
        if it is remembered and its time is over, or it is revoked."""
        if len(token) > MAX_TOKEN or not token.isascii():
            return None
        name = hashlib.sha256(token.encode()).digest()
        entry = self._remembered.get(name)
        if entry is None:
            return None
        now = self._clock()
        found = entry.token
        if now >= found.expires_us:
            del self._remembered[name]
            raise Unauthenticated("token-expired")
        if now < found.not_before_us:  # the clock went back
            raise Unauthenticated("token-not-yet-valid")
        if entry.keys.usable(now).get(entry.kid) is not entry.key:  # withdrawn, or its issuer cannot be asked
            del self._remembered[name]
            return None
        entry.accepted_by = self._revocations.require_accepted(found, accepted_by=entry.accepted_by)
        self._remembered.move_to_end(name)
        return found

    async def verify(self, token: str) -> VerifiedToken:
        """The verified token; raises Unauthenticated with the reason. Waits only for keys that must be fetched."""
        remembered = self.verify_remembered(token)
        if remembered is not None:
            return remembered
        header, payload = parse_unverified(token)  # 1
        alg, typ = _require_plain_header(header)  # 2
        issuer = self._require_issuer(payload, typ)  # 3
        keys, kid = self._key_sets.of(issuer.name), header.get("kid")
        if not isinstance(kid, str):
            raise Unauthenticated("key-unknown")
        key = await keys.find(kid)
        if alg != key.algorithm_name:
            raise Unauthenticated("algorithm-mismatch")
        try:  # 4
            _JWS.decode_complete(token, key, [key.algorithm_name])
        except (jwt.PyJWTError, TypeError, ValueError, RecursionError):
            # TypeError: PyJWT's word for a key that does not fit the algorithm.
            raise Unauthenticated("signature-invalid") from None
        verified = self._require_claims(payload, issuer, typ)  # 5
        accepted_by = self._revocations.require_accepted(verified)  # 6
        self._remember(token, _Remembered(verified, keys, kid, key, accepted_by))
        return verified

    def start(self) -> None:
        """Begin to fetch what must be fetched. Needs the running event loop; returns at once."""
        self._key_sets.start()

    async def close(self) -> None:
        await self._key_sets.close()

    def details(self) -> tuple[str, ...]:
        """What operators should know about the issuers' keys; nothing if all is well."""
        return self._key_sets.details()

    def _remember(self, token: str, entry: _Remembered) -> None:
        self._remembered[hashlib.sha256(token.encode()).digest()] = entry
        if len(self._remembered) > self._remembered_max:
            self._remembered.popitem(last=False)

    def _require_issuer(self, payload: dict[str, Any], typ: str) -> Issuer:
        name = payload.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise Unauthenticated("issuer-unknown")
        if typ not in issuer.types:
            raise Unauthenticated("type-mismatch")
        return issuer

    def _require_claims(self, payload: dict[str, Any], issuer: Issuer, typ: str) -> VerifiedToken:
        claims = parse_registered(payload)
        if typ == JWT:
            require_access_token(payload, claims)
        if (issuer.audience or self._audience) not in claims.audiences:
            raise Unauthenticated("audience-mismatch")
        if not 0 < claims.exp - claims.iat <= issuer.max_lifetime_s:
            raise Unauthenticated("lifetime-too-long")
        not_before_us, expires_us = _times(claims, leeway_s=issuer.leeway_s)
        verified = apply_rules(issuer.rules, payload, claims, not_before_us=not_before_us, expires_us=expires_us)
        if issuer.tenants and verified.tenant not in issuer.tenants:
            raise Unauthenticated("tenant-not-of-issuer")
        now = self._clock()
        if now >= expires_us:
            raise Unauthenticated("token-expired")
        if now < not_before_us:
            raise Unauthenticated("token-not-yet-valid")
        return verified


def parse_unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of what has the form of a token. Nothing in them is true yet. Raises Unauthenticated."""
    if len(token) > MAX_TOKEN:
        raise Unauthenticated("token-too-large")
    try:
        parsed = parse_compact(token)
    except DecodeError:
        raise Unauthenticated("token-malformed") from None
    if not parsed.signature:
        raise Unauthenticated("token-malformed")
    return parsed.header, parsed.payload


def _times(claims: Registered, *, leeway_s: int) -> tuple[int, int]:
    """From when and until when the token counts, by the clock here."""
    not_before_s = max(claims.iat, claims.nbf) - max(CLOCK_SKEW_S, leeway_s)
    return not_before_s * 1_000_000, (claims.exp + leeway_s) * 1_000_000


def _require_plain_header(header: dict[str, Any]) -> tuple[str, str]:
    """Algorithm and type of a header that says nothing but these and which key."""
    if not _FORBIDDEN.isdisjoint(header):
        raise Unauthenticated("header-forbidden")
    typ, alg = header.get("typ"), header.get("alg")
    if not isinstance(typ, str) or typ.lower() not in TYPES:
        raise Unauthenticated("type-mismatch")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise Unauthenticated("algorithm-refused")
    return alg, TYPES[typ.lower()]
