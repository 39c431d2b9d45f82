"""Principals, models, tenants and circumstances in Cedar's JSON form, as `shipped/schema.cedarschema` declares them.

Pure. Trusts: its arguments. Never: leaves a fact out that a policy may ask for; the schema makes that an error.
"""

from __future__ import annotations

from typing import Any

from policy.cedar import Entity
from policy.entities import Context, Principal, Role
from policy.tenants import Tenant, Tenants
from sealgate.protocol.frames import ModelFacts

TYPES = {Role.CLIENT: "Client", Role.AUDITOR: "Auditor", Role.OPERATOR: "Operator"}
_HOUR_US = 3_600_000_000


def hour_of(now_us: int) -> int:
    return now_us // _HOUR_US


def circumstances(principal: Principal, context: Context) -> dict[str, Any]:
    hours = hour_of(context.now_us)
    return {
        "purpose": context.purpose,
        "sealed": context.sealed,
        "mtls": principal.mtls,
        "token_binding": principal.token_binding,
        "assurance": context.assurance,
        "hour": hours % 24,
        "weekday": (hours // 24 + 3) % 7 + 1,  # the epoch began on a Thursday
    }


def _reference(kind: str, name: str) -> dict[str, Any]:
    return {"__entity": {"type": kind, "id": name}}


def caller_id(principal: Principal) -> str:
    return f"{principal.tenant}/{principal.subject}"  # a tenant's name has no "/", so this is unambiguous


def caller_entity(principal: Principal, role: Role) -> Entity:
    return {
        "uid": {"type": TYPES[role], "id": caller_id(principal)},
        "attrs": {
            "tenant": _reference("Tenant", principal.tenant),
            "subject": principal.subject,
            "purposes": sorted(principal.purposes),
            "authn": principal.authn,
        },
        "parents": [{"type": "Tenant", "id": principal.tenant}],
    }


def model_entity(model: ModelFacts) -> Entity:
    return {
        "uid": {"type": "Model", "id": model.name},
        "attrs": {
            "name": model.name,
            "version": model.version,
            "epsilon_micro": model.epsilon_micro,
            "delta": model.delta,
            "privacy_unit": model.privacy_unit,
            "sensitivity": model.sensitivity,
            "purposes": sorted(model.purposes),
            "audited": model.audited,
        },
        "parents": [],
    }


def standing_entities(tenants: Tenants) -> list[Entity]:
    every: Entity = {"uid": {"type": "Log", "id": "all"}, "attrs": {"every_tenant": True}, "parents": []}
    return [every, *(entity for tenant in tenants.tenants.values() for entity in _tenant_entities(tenant))]


def _tenant_entities(tenant: Tenant) -> tuple[Entity, Entity]:
    organisation: Entity = {
        "uid": {"type": "Tenant", "id": tenant.name},
        "attrs": {
            "suspended": tenant.suspended,
            "requires_mtls": tenant.requires_mtls,
            "token_binding": tenant.token_binding,
            "evidence_floor": tenant.evidence_floor,
            "audits_every_tenant": tenant.audits_every_tenant,
        },
        "parents": [],
        "tags": dict(tenant.max_epsilon_micro),
    }
    records: Entity = {
        "uid": {"type": "Log", "id": f"tenant:{tenant.name}"},
        "attrs": {"every_tenant": False, "tenant": _reference("Tenant", tenant.name)},
        "parents": [],
    }
    return organisation, records
