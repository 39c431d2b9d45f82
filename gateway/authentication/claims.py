"""The claims of a token whose signature holds become a `VerifiedToken`, by its issuer's rules (RFC 9068 section 2.2).

Providers name tenants, roles and purposes each in their own way; a `ClaimRules` says where they stand in the tokens of
one issuer and what their names are called here. A place is a claim's name, a path of names into nested claims, and a
map has the provider's names on its left; with a map, what it does not name counts for nothing.

Trusts: the rules. Never: guesses a claim from another one, converts between types, or takes a confirmation method
(RFC 7800 `cnf`) that is not known here, because such a token is bound to something that nobody would check.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from gateway.errors import Unauthenticated
from gateway.limits import MAX_CLAIM_ITEMS, MAX_CLAIM_TEXT
from policy.entities import Principal
from sealgate.limits import MAX_NAME

AT_JWT = "at+jwt"
JWT = "jwt"

# What only other kinds of token carry: ID tokens (OpenID Connect Core section 2) and security events (RFC 8417).
_OTHER_KINDS = frozenset({"nonce", "at_hash", "c_hash", "s_hash", "events"})
_ACCESS_TYPES = frozenset({"Bearer", "DPoP"})  # what some providers write into a claim `typ` of an access token
_SCOPES = frozenset({"scope", "scp"})  # RFC 8693 section 4.2: one string, separated by spaces

_Time = Annotated[int, msgspec.Meta(ge=1, lt=2**40)]
_Name = Annotated[str, msgspec.Meta(pattern=rf"^[\x21-\x7e]{{1,{MAX_NAME}}}\Z")]
_Names = Annotated[tuple[_Name, ...], msgspec.Meta(max_length=MAX_CLAIM_ITEMS)]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_CLAIM_TEXT)]  # a provider's own name, which a map turns into ours
_Texts = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=MAX_CLAIM_ITEMS)]
_Identifier = Annotated[str, msgspec.Meta(pattern=rf"^[\x20-\x7e]{{1,{MAX_CLAIM_TEXT}}}\Z")]
_Thumbprint = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """What the caller must show besides the token. At least one is there; all that are there must hold."""

    x5t_s256: str | None = None  # RFC 8705 section 3.1: SHA-256 of the client certificate's DER form, base64url
    jkt: str | None = None  # RFC 9449 section 6.1: RFC 7638 thumbprint of the DPoP key, base64url


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedToken:
    """Holding one proves: an issuer that may speak for `tenant` signed it for this deployment, it was not expired and
    not revoked when it was handed out. It does not prove that whoever sent it is its owner (see `confirmation`), nor
    that anything is allowed."""

    issuer: str
    tenant: str
    subject: str
    roles: tuple[str, ...]
    purposes: tuple[str, ...]
    jti: str  # "" if it has none, which only an issuer with require_jti = false may do
    client_id: str  # "" likewise
    iat: int
    exp: int
    not_before_us: int  # with the issuer's leeway
    expires_us: int  # the first moment at which it does not count, with the issuer's leeway
    confirmation: Confirmation | None
    # What was made of it, by whether its connection counted as mTLS and by what it is bound to: a few at most.
    principals: dict[tuple[bool, str], Principal] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ClaimRules:
    """Where an issuer's tokens say what, and what its names are called here. An empty map changes nothing."""

    tenant: str = ""  # the one tenant of this issuer; then no claim is asked
    tenant_claim: tuple[str, ...] = ("tenant",)
    subject_claim: tuple[str, ...] = ("sub",)
    roles_claim: tuple[str, ...] = ("roles",)
    purposes_claim: tuple[str, ...] = ("purposes",)
    tenant_map: Mapping[str, str] = field(default_factory=dict)
    role_map: Mapping[str, str] = field(default_factory=dict)
    purpose_map: Mapping[str, str] = field(default_factory=dict)
    require_jti: bool = True
    require_client_id: bool = True


class _Cnf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    x5t_s256: _Thumbprint | msgspec.UnsetType = msgspec.field(name="x5t#S256", default=msgspec.UNSET)
    jkt: _Thumbprint | msgspec.UnsetType = msgspec.UNSET


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """The claims that mean the same in everybody's tokens."""

    iss: str
    aud: str | Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_CLAIM_ITEMS)]
    sub: _Identifier
    iat: _Time
    exp: _Time
    nbf: _Time = 1
    jti: _Identifier | msgspec.UnsetType = msgspec.UNSET
    client_id: _Identifier | msgspec.UnsetType = msgspec.UNSET
    cnf: _Cnf | msgspec.UnsetType = msgspec.UNSET

    @property
    def audiences(self) -> tuple[str, ...]:
        return (self.aud,) if isinstance(self.aud, str) else self.aud


def parse_registered(payload: dict[str, Any]) -> Registered:
    """The registered claims; raises Unauthenticated for any that is missing or of another type."""
    try:
        return msgspec.convert(payload, Registered)
    except msgspec.ValidationError as error:
        raise Unauthenticated("claims-invalid", detail=_which(payload, error)) from None


def require_access_token(payload: dict[str, Any], claims: Registered) -> None:
    """For tokens that only call themselves "JWT" (RFC 8725 section 3.12): refuse what looks like another kind.

    An ID token is signed by the same keys. It carries marks that access tokens do not, and its audience is the client
    itself; a token whose `client_id` or `azp` is among its audiences is therefore refused too.
    """
    clients = {payload.get(name) for name in ("client_id", "azp") if isinstance(payload.get(name), str)}
    said = payload.get("typ", "Bearer")
    if (
        not _OTHER_KINDS.isdisjoint(payload)
        or not clients.isdisjoint(claims.audiences)
        or not (isinstance(said, str) and said in _ACCESS_TYPES)
    ):
        raise Unauthenticated("type-mismatch")


def apply_rules(
    rules: ClaimRules, payload: dict[str, Any], claims: Registered, *, not_before_us: int, expires_us: int
) -> VerifiedToken:
    """What the token says, in our names; raises Unauthenticated if something that must be there is not."""
    with _reading(payload, rules.subject_claim):
        subject = msgspec.convert(_at(payload, rules.subject_claim), _Name)
    with _reading(payload, rules.roles_claim):
        roles = _listed(payload, rules.roles_claim, rules.role_map)
    with _reading(payload, rules.purposes_claim):
        purposes = _listed(payload, rules.purposes_claim, rules.purpose_map)
    with _reading(payload, rules.tenant_claim):
        tenant = rules.tenant or msgspec.convert(_at(payload, rules.tenant_claim), _Text if rules.tenant_map else _Name)
    if rules.tenant_map and not rules.tenant:
        if tenant not in rules.tenant_map:
            raise Unauthenticated("tenant-not-of-issuer")
        tenant = rules.tenant_map[tenant]
    if rules.require_jti and not claims.jti:
        raise Unauthenticated("claims-invalid", detail="jti is missing")
    if rules.require_client_id and not claims.client_id:
        raise Unauthenticated("claims-invalid", detail="client_id is missing")
    return VerifiedToken(
        issuer=claims.iss,
        tenant=tenant,
        subject=subject,
        roles=roles,
        purposes=purposes,
        jti=claims.jti or "",
        client_id=claims.client_id or "",
        iat=claims.iat,
        exp=claims.exp,
        not_before_us=not_before_us,
        expires_us=expires_us,
        confirmation=_confirmation(claims.cnf),
    )


def _confirmation(cnf: _Cnf | msgspec.UnsetType) -> Confirmation | None:
    if isinstance(cnf, msgspec.UnsetType):
        return None
    found = Confirmation(x5t_s256=cnf.x5t_s256 or None, jkt=cnf.jkt or None)
    if found == Confirmation():
        raise Unauthenticated("claims-invalid", detail="cnf is empty")
    return found


def _which(payload: dict[str, Any], error: msgspec.ValidationError) -> str:
    """Which registered claim is wrong. The library's text names it; what it holds is never repeated."""
    missing = [name for name in ("iss", "aud", "sub", "iat", "exp") if name not in payload]
    if missing:
        return f"{missing[0]} is missing"
    named = re.search(r"at `\$\.([a-z_]{2,9})", str(error))
    return f"{named[1]} is not of its type" if named else ""


@contextmanager
def _reading(payload: dict[str, Any], path: tuple[str, ...]) -> Iterator[None]:
    """Around taking what stands at a path."""
    try:
        yield
    except msgspec.ValidationError:
        what = "is missing" if _at(payload, path) is None else "is not of its type"
        raise Unauthenticated("claims-invalid", detail=f"{'.'.join(path)} {what}") from None


def _at(payload: dict[str, Any], path: tuple[str, ...]) -> Any:
    """What stands at a path, None if nothing does."""
    value: Any = payload
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _listed(payload: dict[str, Any], path: tuple[str, ...], names: Mapping[str, str]) -> tuple[str, ...]:
    """The names at a path, in ours; none if the claim is not there."""
    parent = _at(payload, path[:-1])
    if not isinstance(parent, dict) or path[-1] not in parent:
        return ()
    value = parent[path[-1]]
    if isinstance(value, str) and path[-1] in _SCOPES:
        value = value.split()
    if not names:
        return msgspec.convert(value, _Names)
    theirs = msgspec.convert(value, _Texts)
    return tuple(dict.fromkeys(names[name] for name in theirs if name in names))
