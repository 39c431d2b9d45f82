"""Which OCSF class each kind of record becomes, and what that class demands beyond the base event.

    6003 API Activity           inference, audit reads and reviews, erasure, pruning, and whatever has no better class
    3002 Authentication         callers that could not be authenticated
    3004 Entity Management      policies, models, keys, credentials, legal holds
    6002 Application Lifecycle  workers and the log's writer

Trusts nothing. Never: drops a kind: one that is not listed here is API Activity: Other under its own name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sealgate.transparency.record import Record

_API, _AUTHENTICATION, _ENTITY, _LIFECYCLE = 6003, 3002, 3004, 6002
_NAMES = {
    _API: "API Activity",
    _AUTHENTICATION: "Authentication",
    _ENTITY: "Entity Management",
    _LIFECYCLE: "Application Lifecycle",
}
_CATEGORIES = {3: "Identity & Access Management", 6: "Application Activity"}
_OTHER = 99
_KINDS: dict[str, tuple[int, int, str]] = {
    "auth.failed": (_AUTHENTICATION, 1, "Logon"),
    "policy.change": (_ENTITY, 3, "Update"),
    "budget.grant": (_ENTITY, 3, "Update"),
    "budget.exhausted": (_ENTITY, _OTHER, "Exhaust"),
    "credential.revoke": (_ENTITY, 9, "Disable"),
    "credential.restore": (_ENTITY, 8, "Enable"),
    "model.load": (_ENTITY, 10, "Activate"),
    "model.refuse": (_ENTITY, _OTHER, "Refuse"),
    "model.change": (_ENTITY, 3, "Update"),
    "key.rotate": (_ENTITY, 3, "Update"),
    "hold.placed": (_ENTITY, 8, "Enable"),
    "hold.released": (_ENTITY, 9, "Disable"),
    "worker.start": (_LIFECYCLE, 3, "Start"),
    "worker.stop": (_LIFECYCLE, 4, "Stop"),
    "log.opened": (_LIFECYCLE, 3, "Start"),
    "log.closed": (_LIFECYCLE, 4, "Stop"),
    "log.carried": (_LIFECYCLE, 99, "Carry Over"),
    "audit.query": (_API, 2, "Read"),
    "audit.export": (_API, 2, "Read"),
    "audit.review": (_API, 2, "Read"),
    "subject.report": (_API, 2, "Read"),
    "erasure.completed": (_API, 4, "Delete"),
    "erasure.refused": (_API, 4, "Delete"),
    "retention.pruned": (_API, 4, "Delete"),
}
_UNKNOWN_USER = {"name": "unknown", "type": "Unknown", "type_id": 0}
_NO_ENDPOINT = {"name": "not recorded"}


@dataclass(frozen=True)
class EventClass:
    """A class and an activity of it."""

    class_uid: int
    activity_id: int
    activity: str

    @property
    def name(self) -> str:
        return _NAMES[self.class_uid]

    @property
    def category(self) -> str:
        return _CATEGORIES[self.class_uid // 1000]

    @property
    def type_activity(self) -> str:
        """The activity as the type's caption has it."""
        return "Other" if self.activity_id == _OTHER else self.activity

    def about_model(self, record: Record) -> bool:
        """Whether the event is an operation of a model: only API Activity takes that profile."""
        return self.class_uid == _API and bool(record.model)

    def parts(self, record: Record, actor: dict[str, Any]) -> dict[str, Any]:
        """The attributes that the class has and the base event has not."""
        if self.class_uid == _AUTHENTICATION:
            return {"is_remote": True, "service": {"name": "sealgate"}, "user": _UNKNOWN_USER}
        if self.class_uid == _LIFECYCLE:
            what = "worker" if record.kind.startswith("worker.") else "audit log"
            version = {"uid": record.runtime_instance} if record.runtime_instance else {}
            return {"app": {"name": what, "vendor_name": "Sealgate"} | version}
        if self.class_uid == _ENTITY:
            return {"actor": actor, "entity": _entity(record)}
        return _api_parts(record, actor) | (_model_parts(record) if self.about_model(record) else {})


def class_of(record: Record) -> EventClass:
    """By kind; an inference's activity is its operation."""
    if record.kind in _KINDS:
        return EventClass(*_KINDS[record.kind])
    if record.operation == "read-model":
        return EventClass(_API, 2, "Read")
    return EventClass(_API, _OTHER, record.operation or record.kind)


def _api_parts(record: Record, actor: dict[str, Any]) -> dict[str, Any]:
    response = {"message": record.outcome} if record.outcome else {}
    response |= {"error": record.reason} if record.reason else {}
    api: dict[str, Any] = {
        "operation": record.operation or record.detail.get("question") or record.kind,
        "request": {"uid": record.grant or record.id},
        "service": {"name": "sealgate"},
    }
    if response:
        api["response"] = response
    return {"actor": actor, "api": api, "src_endpoint": _NO_ENDPOINT}


def _model_parts(record: Record) -> dict[str, Any]:
    digest = {"uid": record.model_digest} if record.model_digest else {}
    return {
        "ai_model": {"ai_provider": record.log, "name": record.model} | digest,
        "resources": [{"name": record.model, "role": "Target", "role_id": 1, "type": "model"} | digest],
    }


def _entity(record: Record) -> dict[str, Any]:
    kind, _, _ = record.kind.partition(".")
    if kind == "policy":
        of = {"uid": record.policy_digest} if record.policy_digest else {}
        return {"name": record.detail.get("name") or "policy", "type": "Policy", "type_id": 5} | of
    name: str | None
    uid: str | None
    if kind == "credential":
        name, uid = record.detail.get("what"), record.detail.get("fingerprint")
    elif kind == "model":
        name, uid = record.model, record.model_digest
    else:
        name, uid = kind, record.detail.get("instance") or record.runtime_instance
    return {"name": name or kind, "type": kind, "type_id": _OTHER} | ({"uid": uid} if uid else {})
