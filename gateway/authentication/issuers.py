"""Who may issue tokens: `tokens/issuers.toml`, one `[[issuer]]` each. Every setting: docs/operations.md.

    [[issuer]]
    name = "https://issuer.example"   # the exact `iss` claim
    jwks = "jwks.json"                # or jwks_uri = "https://..." or discovery = true: where its keys are
    algorithms = ["ES256"]
    tenants = ["clinic"]              # whom it may speak for; "*": any tenant, as an only issuer may that says nothing
    roles_claim = "realm_access.roles"
    role_map = { app-user = "client" }

Read once at start. Trusts: whoever may write these files, and over HTTPS whom `ca` (else the system) vouches for.
Never: accepts a setting that would mean nothing, plain HTTP, or two places for one issuer's keys.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from gateway.authentication.claims import AT_JWT, JWT, ClaimRules
from gateway.authentication.jwks import ALGORITHMS, Keys, UnfitKeySet, parse_jwks
from gateway.limits import (
    MAX_CLAIM_PATH,
    MAX_CLAIM_TEXT,
    MAX_ISSUERS,
    MAX_JWKS,
    MAX_KEY_COOLDOWN_S,
    MAX_LEEWAY_S,
    MAX_LIFETIME_S,
    MAX_MAP,
    MAX_STALE_S,
    MAX_URL,
)
from policy.entities import Role
from sealgate.errors import ConfigurationError
from sealgate.limits import MAX_NAME
from sealgate.toml_words import in_words

FILE = "issuers.toml"
_ANY = "*"

TYPES = {"at+jwt": AT_JWT, "application/at+jwt": AT_JWT, "jwt": JWT}
_NAME = re.compile(rf"[\x21-\x7e]{{1,{MAX_NAME}}}")

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URL)]
_Map = Annotated[
    dict[Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CLAIM_TEXT)], str], msgspec.Meta(max_length=MAX_MAP)
]
_Place = str | tuple[str, ...]


class _Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: _Text
    jwks: str = ""
    jwks_uri: str = ""
    discovery: bool = False
    ca: str = ""
    proxy: str = ""
    stale_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_STALE_S)] = 24 * 3600
    unknown_key_cooldown_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_KEY_COOLDOWN_S)] = 30
    algorithms: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("ES256",)
    accept_types: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = (AT_JWT,)
    audience: str = ""
    max_lifetime_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIFETIME_S)] = 3600
    leeway_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_LEEWAY_S)] = 0
    require_jti: bool = True
    require_client_id: bool = True
    tenants: tuple[str, ...] = ()
    tenant: str = ""
    tenant_claim: _Place = "tenant"
    tenant_map: _Map = {}
    subject_claim: _Place = "sub"
    roles_claim: _Place = "roles"
    role_map: _Map = {}
    purposes_claim: _Place = "purposes"
    purpose_map: _Map = {}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    issuer: Annotated[tuple[_Issuer, ...], msgspec.Meta(max_length=MAX_ISSUERS)] = ()


@dataclass(frozen=True, kw_only=True)
class RemoteKeys:
    """Where an issuer's keys are fetched. `jwks_uri` is "" where the issuer's metadata says it (RFC 8414)."""

    jwks_uri: str
    ca: Path | None
    proxy: str | None
    stale_s: int
    cooldown_s: int


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """A token issuer and the rules for its tokens. `keys` are there for good unless they are fetched (`remote`)."""

    name: str
    keys: Keys = field(default_factory=dict)
    remote: RemoteKeys | None = None
    algorithms: tuple[str, ...] = ("ES256",)
    types: frozenset[str] = frozenset({AT_JWT})
    audience: str = ""  # "": the deployment's
    max_lifetime_s: int = 3600
    leeway_s: int = 0
    tenants: frozenset[str] = frozenset()
    rules: ClaimRules = field(default_factory=ClaimRules)


def load_issuers(directory: Path) -> dict[str, Issuer]:
    """The issuers of `directory/issuers.toml` by name. Raises ConfigurationError that says what to mend."""
    path = directory / FILE
    try:
        file = msgspec.convert(tomllib.loads(_read(path).decode()), _File)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: {in_words(error, _File)}") from error
    issuers: dict[str, Issuer] = {}
    for item in file.issuer:
        if item.name in issuers:
            raise ConfigurationError(f"{path}: issuer '{item.name}' is there twice")
        try:
            issuers[item.name] = _issuer(item, directory)
        except UnfitKeySet:
            raise
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: issuer '{item.name}': {error}") from error
    _require_bounds(file.issuer, where=str(path))
    return issuers


def _require_bounds(items: Iterable[_Issuer], *, where: str) -> None:
    """Beside others, an issuer says whom it may speak for: one provider must not make callers of another's tenant."""
    every = tuple(items)
    for item in every if len(every) > 1 else ():
        if not (item.tenants or item.tenant or item.tenant_map):
            raise ConfigurationError(
                f"{where}: issuer '{item.name}': with several issuers each says whom it may speak for: "
                'tenants = ["clinic"], or ["*"] for any tenant'
            )


def _issuer(item: _Issuer, directory: Path) -> Issuer:
    unknown = set(item.algorithms) - set(ALGORITHMS)
    if unknown:
        raise ConfigurationError(f"algorithm '{min(unknown)}' is not one of {', '.join(ALGORITHMS)}")
    if sum(map(bool, (item.jwks, item.jwks_uri, item.discovery))) != 1:
        raise ConfigurationError("needs exactly one of: jwks, jwks_uri, discovery = true")
    return Issuer(
        name=item.name,
        keys=_keys_of_file(directory / item.jwks, item.algorithms) if item.jwks else {},
        remote=None if item.jwks else _remote(item, directory),
        algorithms=item.algorithms,
        types=_types(item.accept_types),
        audience=item.audience,
        max_lifetime_s=item.max_lifetime_s,
        leeway_s=item.leeway_s,
        tenants=frozenset() if item.tenants == (_ANY,) else frozenset(item.tenants),
        rules=_rules(item),
    )


def _keys_of_file(path: Path, algorithms: tuple[str, ...]) -> Keys:
    try:
        return parse_jwks(_read(path), algorithms=algorithms, where=str(path))
    except UnfitKeySet:
        raise
    except ConfigurationError as error:
        raise UnfitKeySet(str(error)) from error


def _remote(item: _Issuer, directory: Path) -> RemoteKeys:
    url = item.jwks_uri or item.name
    require_https(url)
    if item.discovery and (urlsplit(url).query or "#" in url):
        raise ConfigurationError("a name with a query or fragment cannot be discovered (RFC 8414 section 2)")
    if item.proxy and urlsplit(item.proxy).scheme not in ("http", "https"):
        raise ConfigurationError("proxy must be http://HOST:PORT or https://HOST:PORT")
    ca = directory / item.ca if item.ca else None
    if ca is not None:
        _read(ca)
    return RemoteKeys(
        jwks_uri=item.jwks_uri,
        ca=ca,
        proxy=item.proxy or None,
        stale_s=item.stale_s,
        cooldown_s=item.unknown_key_cooldown_s,
    )


def require_https(url: str) -> None:
    """Raises ConfigurationError for anything but an https URL with a host and without a user's name."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        fine = False
    if not fine or len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigurationError("keys are fetched over https only: the URL must be https://HOST/...")


def _types(names: Iterable[str]) -> frozenset[str]:
    unknown = [name for name in names if name.lower() not in TYPES]
    if unknown:
        raise ConfigurationError(f"accept_types has '{unknown[0]}'; there are: at+jwt, JWT")
    return frozenset(TYPES[name.lower()] for name in names)


def _rules(item: _Issuer) -> ClaimRules:
    roles = [role.value for role in Role]
    for role in item.role_map.values():
        if role not in roles:
            raise ConfigurationError(f"role_map gives '{role}'; roles are: {', '.join(roles)}")
    for name in (item.tenant or "-", *item.tenant_map.values(), *item.purpose_map.values()):
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is not a name: 1 to {MAX_NAME} printable characters without spaces")
    if item.tenant and item.tenant_map:
        raise ConfigurationError("tenant and tenant_map exclude each other")
    if _ANY in item.tenants and len(item.tenants) > 1:
        raise ConfigurationError('tenants is a list of names, or ["*"] alone')
    if item.tenants not in ((), (_ANY,)) and not _tenants(item).issubset(item.tenants):
        raise ConfigurationError("tenant or tenant_map names a tenant that is not in tenants")
    return ClaimRules(
        tenant=item.tenant,
        tenant_claim=_place(item.tenant_claim),
        subject_claim=_place(item.subject_claim),
        roles_claim=_place(item.roles_claim),
        purposes_claim=_place(item.purposes_claim),
        tenant_map=item.tenant_map,
        role_map=item.role_map,
        purpose_map=item.purpose_map,
        require_jti=item.require_jti,
        require_client_id=item.require_client_id,
    )


def _tenants(item: _Issuer) -> set[str]:
    return {item.tenant} - {""} | set(item.tenant_map.values())


def _place(place: _Place) -> tuple[str, ...]:
    """`a.b` is the claim b inside the claim a. A name that is a URL, as some providers demand, is one name; a list
    says the names one by one, for those with dots in them."""
    path = place if isinstance(place, tuple) else (place,) if "://" in place else tuple(place.split("."))
    if not 0 < len(path) <= MAX_CLAIM_PATH or not all(0 < len(name) <= MAX_CLAIM_TEXT for name in path):
        raise ConfigurationError(f"{place!r} is not a claim: a name, or names with dots between them")
    return path


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JWKS + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_JWKS:
        raise ConfigurationError(f"{path}: larger than {MAX_JWKS} bytes")
    return data
