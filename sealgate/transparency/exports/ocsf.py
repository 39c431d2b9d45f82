"""Open Cybersecurity Schema Framework 1.9: one event a line, in canonical JSON.

What a record becomes stands in `ocsf_classes`. Two profiles: `ai_operation` names the model, `record_integrity` carries
an attestation whose fingerprint is SHA-256 over the canonical serialization (RFC 8785) of the event without that
fingerprint. It has no signature and no previous event: the log signs tree heads, not records, and a Merkle tree, not a
chain, holds them together. `raw_data` is the leaf itself; `unmapped.leaf_hash` is what proofs of the log are about.

Trusts nothing. Never: guesses. The log knows no address of a caller, so `src_endpoint` (which the schema demands) says
that there is none.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.exports.leaves import PlacedLeaf, rfc3339
from sealgate.transparency.exports.ocsf_classes import EventClass, class_of
from sealgate.transparency.exports.weight import Weight, succeeded, weight_of
from sealgate.transparency.record import Record

VERSION = "1.9.0"
_PRODUCT = {"name": "Sealgate", "vendor_name": "Sealgate"}
_SEVERITY = {Weight.PLAIN: (1, "Informational"), Weight.NOTABLE: (2, "Low"), Weight.BAD: (3, "Medium")}
_SHA256 = {"algorithm": "SHA-256", "algorithm_id": 3}
_JCS = {"serialization": "JCS", "serialization_id": 1}
_SYSTEM = {"name": "sealgate", "type": "System", "type_id": 3}


def ocsf_line(entry: PlacedLeaf) -> bytes:
    """One event with its line feed."""
    event = ocsf_event(entry)
    fingerprint = hashlib.sha256(canonical_json(event)).hexdigest()
    event["attestation"]["fingerprint"] = _SHA256 | _JCS | {"value": fingerprint}
    return canonical_json(event) + b"\n"


def ocsf_event(entry: PlacedLeaf) -> dict[str, Any]:
    """The event before its fingerprint: exactly what the fingerprint is taken over."""
    record = entry.record
    kind = class_of(record)
    severity_id, severity = _SEVERITY[weight_of(record)]
    event: dict[str, Any] = {
        "activity_id": kind.activity_id,
        "activity_name": kind.activity,
        "attestation": {"authority_uid": record.log, "chain_uid": record.log, "uid": str(entry.index)},
        "category_name": kind.category,
        "category_uid": kind.class_uid // 1000,
        "class_name": kind.name,
        "class_uid": kind.class_uid,
        "message": " ".join(filter(None, (record.kind, record.model, record.outcome, record.reason))),
        "metadata": _metadata(entry, kind),
        "raw_data": entry.leaf.decode(),
        "raw_data_hash": _SHA256 | {"value": hashlib.sha256(entry.leaf).hexdigest()},
        "severity": severity,
        "severity_id": severity_id,
        "status": "Success" if succeeded(record) else "Failure",
        "status_id": 1 if succeeded(record) else 2,
        "time": record.ts_us // 1000,
        "type_name": f"{kind.name}: {kind.type_activity}",
        "type_uid": kind.class_uid * 100 + kind.activity_id,
        "unmapped": {"leaf_hash": entry.hash},
    }
    if record.reason:
        event["status_detail"] = record.reason
    if record.kind == "auth.failed" and (count := record.detail.get("count", "")).isdecimal() and len(count) < 10:
        event["count"] = int(count)
    return event | kind.parts(record, _actor(record))


def _metadata(entry: PlacedLeaf, kind: EventClass) -> dict[str, Any]:
    record = entry.record
    metadata: dict[str, Any] = {
        "event_code": record.kind,
        "log_name": record.log,
        "original_time": rfc3339(record.ts_us),
        "product": _PRODUCT,
        "profiles": [*(["ai_operation"] if kind.about_model(record) else []), "record_integrity"],
        "sequence": entry.index,
        "uid": record.id,
        "version": VERSION,
    }
    if record.tenant:
        metadata["tenant_uid"] = record.tenant
    if record.grant:
        metadata["correlation_uid"] = record.grant
    return metadata


def _actor(record: Record) -> dict[str, Any]:
    """Who did it: a caller's pseudonym, or the system itself. What the policy said stands with it."""
    user: dict[str, Any] = {"type": "Unknown", "type_id": 0, "uid": record.actor} if record.actor else dict(_SYSTEM)
    actor: dict[str, Any] = {"user": user}
    if record.policy_digest:
        policy = {"uid": record.policy_digest} | ({"name": " ".join(record.policy_ids)} if record.policy_ids else {})
        denied = record.kind == "inference.denied"
        actor["authorizations"] = [{"decision": "Denied" if denied else "Allowed", "policy": policy}]
    return actor
