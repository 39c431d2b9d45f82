"""A bearer token becomes `TokenClaims`, or nothing at all.

    1  size and shape: three base64url parts, no more than MAX_TOKEN bytes
    2  the header names an allowed algorithm, the type at+jwt, and nothing that brings its own key or rules
    3  the issuer is configured and holds that key; the key's own algorithm is the token's
    4  the signature holds (PyJWT)
    5  every required claim is there, of the exact type, for this audience, from now on and not for too long

Every way to fail is one `Unauthenticated`; its reason goes to the log only. Tokens that verified are remembered by the
SHA-256 of their whole text until they expire. Trusts: the issuers' keys and the clock. Never: keeps a token's text,
takes a key or an algorithm from a token, or says to a caller which step failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import OrderedDict
from typing import Annotated, Any, NoReturn

import jwt
import msgspec

from gateway.authentication.issuers import ALGORITHMS, Issuer
from gateway.errors import Unauthenticated
from gateway.limits import CLOCK_SKEW_S, MAX_CLAIM_ITEMS, MAX_TOKEN, MAX_VERIFIED_TOKENS
from sealgate.ambient import Clock, now_us
from sealgate.limits import MAX_NAME

_JWS = jwt.PyJWS(algorithms=list(ALGORITHMS))
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = frozenset({"at+jwt", "application/at+jwt"})
# Header parameters that bring a key, an extension or a transformation along. None is understood, so none is accepted.
_FORBIDDEN = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc", "cty"})

_Time = Annotated[int, msgspec.Meta(ge=1, lt=2**40)]
_Name = Annotated[str, msgspec.Meta(pattern=rf"^[\x21-\x7e]{{1,{MAX_NAME}}}\Z")]
_Names = Annotated[tuple[_Name, ...], msgspec.Meta(max_length=MAX_CLAIM_ITEMS)]
_Audiences = Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_CLAIM_ITEMS)]


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`cnf`: what the caller must hold besides the token. A kind that is not known here makes the token useless."""

    thumbprint: Annotated[str, msgspec.Meta(min_length=43, max_length=43)] = msgspec.field(name="x5t#S256")


class TokenClaims(msgspec.Struct, frozen=True, kw_only=True):
    """The claims of a token that verified. Holding one proves: an issuer that may speak for `tenant` signed it for this
    audience, and it had not expired when it was handed out. It does not prove that the bearer is its owner (see
    `cnf`), nor that anything is allowed."""

    iss: str
    aud: str | _Audiences
    sub: _Name
    iat: _Time
    exp: _Time
    tenant: _Name
    nbf: _Time = 1
    roles: _Names = ()
    purposes: _Names = ()
    cnf: Confirmation | None = None


class TokenVerifier:
    """Verifies and remembers. One per process, used from its event loop only."""

    def __init__(
        self,
        issuers: dict[str, Issuer],
        *,
        audience: str,
        clock: Clock = now_us,
        remembered_max: int = MAX_VERIFIED_TOKENS,
    ) -> None:
        self._issuers = issuers
        self._audience = audience
        self._clock = clock
        self._remembered_max = remembered_max
        self._remembered: OrderedDict[bytes, TokenClaims] = OrderedDict()

    def verify(self, token: str) -> TokenClaims:
        """The claims of `token`; raises Unauthenticated with the reason."""
        if len(token) > MAX_TOKEN:  # 1
            raise Unauthenticated("token-too-large")
        if not _COMPACT.fullmatch(token):
            raise Unauthenticated("token-malformed")
        name = hashlib.sha256(token.encode("ascii")).digest()
        claims = self._remembered.get(name)
        if claims is None:
            claims = self._verify_anew(token)
            self._remembered[name] = claims
            if len(self._remembered) > self._remembered_max:
                self._remembered.popitem(last=False)
        else:
            self._remembered.move_to_end(name)
            try:
                self._require_current(claims)
            except Unauthenticated:
                del self._remembered[name]
                raise
        return claims

    def _verify_anew(self, token: str) -> TokenClaims:
        head, body, _ = token.split(".")
        header, payload = _parse_object(head), _parse_object(body)
        kid = _require_plain_header(header)  # 2
        issuer = self._issuers.get(payload["iss"]) if isinstance(payload.get("iss"), str) else None  # 3
        if issuer is None:
            raise Unauthenticated("issuer-unknown")
        key = issuer.keys.get(kid)
        if key is None:
            raise Unauthenticated("key-unknown")
        if header["alg"] != key.algorithm_name:
            raise Unauthenticated("algorithm-mismatch")
        try:  # 4
            _JWS.decode_complete(token, key, [key.algorithm_name])
        except (jwt.PyJWTError, TypeError, ValueError, RecursionError):
            # TypeError: PyJWT's word for a key that does not fit the algorithm.
            raise Unauthenticated("signature-invalid") from None
        try:  # 5
            claims = msgspec.convert(payload, TokenClaims)
        except msgspec.ValidationError:
            raise Unauthenticated("claims-invalid") from None
        self._require_ours(claims, issuer)
        self._require_current(claims)
        return claims

    def _require_ours(self, claims: TokenClaims, issuer: Issuer) -> None:
        audiences = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
        if self._audience not in audiences:
            raise Unauthenticated("audience-mismatch")
        if issuer.tenants and claims.tenant not in issuer.tenants:
            raise Unauthenticated("tenant-not-of-issuer")
        if not 0 < claims.exp - claims.iat <= issuer.max_lifetime_s:
            raise Unauthenticated("lifetime-too-long")

    def _require_current(self, claims: TokenClaims) -> None:
        now_s = self._clock() / 1e6
        if now_s >= claims.exp:
            raise Unauthenticated("token-expired")
        if max(claims.iat, claims.nbf) > now_s + CLOCK_SKEW_S:
            raise Unauthenticated("token-not-yet-valid")


def _require_plain_header(header: dict[str, Any]) -> str:
    """The key id of a header that says nothing but which key and algorithm."""
    if not _FORBIDDEN.isdisjoint(header):
        raise Unauthenticated("header-forbidden")
    typ, alg, kid = header.get("typ"), header.get("alg"), header.get("kid")
    if not isinstance(typ, str) or typ.lower() not in _TYPES:
        raise Unauthenticated("type-mismatch")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise Unauthenticated("algorithm-refused")
    if not isinstance(kid, str):
        raise Unauthenticated("key-unknown")
    return kid


def _parse_object(part: str) -> dict[str, Any]:
    """A base64url part as a JSON object without repeated names: two parsers must never read two different tokens."""
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unrepeated, parse_constant=_refuse, parse_float=_refuse
        )
    except (ValueError, RecursionError):
        raise Unauthenticated("token-malformed") from None
    if not isinstance(value, dict):
        raise Unauthenticated("token-malformed")
    return value


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError
    return value


def _refuse(text: str) -> NoReturn:
    """NaN, Infinity and fractions have no place in a token."""
    raise ValueError
