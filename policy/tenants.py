"""`tenants.toml`: the tenants, what each may use models for, and what client certificates stand for.

Trusts: whoever may write the file. Never: accepts an unknown field, a repeated name or a reference to nothing; a
mistake is one line that names the file and the field.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from policy.clients import CertificateClient, ClientRules, client_rules
from policy.errors import PolicyFileError
from policy.limits import MAX_CLIENTS, MAX_EPSILON_MICRO, MAX_PURPOSES, MAX_TENANTS
from policy.toml import Name, parse_toml

FILE = "tenants.toml"

_Decimal = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,6})(\.[0-9]{1,6})?\Z")]
_Fingerprint = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Purpose(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    max_epsilon: _Decimal


class _Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    suspended: bool = False
    requires_mtls: bool = False
    token_binding: Annotated[str, msgspec.Meta(pattern=r"^(none|any|mtls|dpop)\Z")] = "none"  # noqa: S105  # no password
    evidence_floor: Annotated[str, msgspec.Meta(pattern=r"^(software|tpm|hardware)\Z")] = "software"
    audits_every_tenant: bool = False
    purpose: Annotated[tuple[_Purpose, ...], msgspec.Meta(max_length=MAX_PURPOSES)] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tenant: Annotated[tuple[_Tenant, ...], msgspec.Meta(min_length=1, max_length=MAX_TENANTS)]
    client: Annotated[tuple[CertificateClient, ...], msgspec.Meta(max_length=MAX_CLIENTS)] = ()
    revoked_certificates: tuple[_Fingerprint, ...] = ()


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant, as policies see it. `max_epsilon_micro` maps each allowed purpose to its limit in millionths."""

    name: str
    suspended: bool
    requires_mtls: bool
    token_binding: str  # what the tenant demands: "none", "any", "mtls", "dpop"
    evidence_floor: str
    audits_every_tenant: bool
    max_epsilon_micro: dict[str, int]


class Tenants(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `tenants.toml`."""

    tenants: dict[str, Tenant]
    clients: ClientRules
    revoked_certificates: frozenset[str]  # SHA-256 of the DER form, lowercase hex

    def client_of(self, names: Iterable[str], authorities: frozenset[str]) -> CertificateClient | None:
        """Whom a VERIFIED certificate with these names stands for ("URI:...", "DNS:...", "email:...", "CN:...").

        `authorities` are the names of those that stand behind it. None if it stands for nobody, or for two.
        """
        return self.clients.client_of(names, authorities)


def micro(decimal: str) -> int:
    """Millionths of a decimal of at most six places, without any float on the way."""
    whole, _, fraction = decimal.partition(".")
    return int(whole) * 1_000_000 + int(fraction.ljust(6, "0") or "0")


def parse_tenants(data: bytes, *, name: str = FILE) -> Tenants:
    """Parse the file's bytes; `name` is what errors call it. Raises PolicyFileError."""
    file = parse_toml(data, _File, name=name)
    tenants: dict[str, Tenant] = {}
    for index, item in enumerate(file.tenant):
        if item.name in tenants:
            raise PolicyFileError(f"{name}: tenant[{index}].name: '{item.name}' is there twice")
        limits: dict[str, int] = {}
        for place, purpose in enumerate(item.purpose):
            where = f"{name}: tenant[{index}].purpose[{place}]"
            if purpose.name in limits:
                raise PolicyFileError(f"{where}.name: '{purpose.name}' is there twice")
            limits[purpose.name] = micro(purpose.max_epsilon)
            if limits[purpose.name] > MAX_EPSILON_MICRO:
                raise PolicyFileError(f"{where}.max_epsilon: above {MAX_EPSILON_MICRO // 1_000_000}")
        tenants[item.name] = Tenant(
            name=item.name,
            suspended=item.suspended,
            requires_mtls=item.requires_mtls,
            token_binding=item.token_binding,
            evidence_floor=item.evidence_floor,
            audits_every_tenant=item.audits_every_tenant,
            max_epsilon_micro=limits,
        )
    return Tenants(
        tenants=tenants,
        clients=_clients(file.client, tenants, name=name),
        revoked_certificates=frozenset(file.revoked_certificates),
    )


def _clients(items: tuple[CertificateClient, ...], tenants: dict[str, Tenant], *, name: str) -> ClientRules:
    for index, item in enumerate(items):
        where = f"{name}: client[{index}]"
        if item.tenant not in tenants:
            raise PolicyFileError(f"{where}.tenant: there is no tenant '{item.tenant}'")
        for purpose in item.purposes:
            if purpose not in tenants[item.tenant].max_epsilon_micro:
                raise PolicyFileError(f"{where}.purposes: tenant '{item.tenant}' has no purpose '{purpose}'")
    return client_rules(items, name=name)
