"""The record: one leaf of the audit log. Its canonical bytes are the evidence; everything else is an index of them.

Canonical JSON of a `Record`, at most 8 KiB, with fields at their default left out. The leaf hash is RFC 9162's
SHA-256(0x00 || leaf). Trusts nothing: `parse_leaf` accepts only the exact bytes that `leaf_bytes` writes.
Never: payload, output, token, caller identity (a random pseudonym stands for the caller) or floats.
"""

from __future__ import annotations

import msgspec

from sealgate.errors import DecodeError, LogError
from sealgate.limits import MAX_LEAF
from sealgate.protocol.canonical import canonical_json, parse_canonical_json
from sealgate.protocol.completion import Completion, Statement

KINDS: dict[str, str] = {
    "inference.authorized": "a request was permitted; it will have exactly one end",
    "inference.denied": "the policy or the budget refused a request; nothing was forwarded",
    "inference.completed": "an answer was sealed and may have been released",
    "inference.failed": "a permitted request ended without the answer it asked for",
    "inference.aborted": "a permitted request was cut off by a crash; written at the next start",
    "auth.failed": "callers that could not be authenticated, counted per reason, source class and minute",
    "policy.change": "a policy set came into force",
    "budget.grant": "a policy that came into force grants a budget that the one before did not, or not so",
    "budget.exhausted": "a budget refused a request for the first time in its window, as far as this start knows",
    "credential.revoke": "tokens, a caller or a certificate must not be accepted any more",
    "credential.restore": "a revocation was taken back",
    "model.load": "a model bundle was verified and loaded",
    "model.refuse": "a model bundle was refused",
    "model.change": "which models and versions are served: an operator changed it, or could not, or a start says it",
    "key.rotate": "a worker instance published request keys",
    "worker.start": "a worker sealed its sandbox and named its completion key",
    "worker.stop": "a worker ended, as asked or not",
    "audit.query": "an auditor read records",
    "audit.export": "an auditor exported records",
    "audit.review": "an auditor states that somebody looked at a range of records",
    "subject.report": "an operator asked what the log holds about one person",
    "erasure.completed": "a person's name was deleted; a pseudonym is left that nobody can resolve",
    "erasure.refused": "a person's name was to be deleted and is held",
    "hold.placed": "records, and who they are about, must be kept until further notice",
    "hold.released": "a hold was lifted",
    "retention.pruned": "records whose time is over are deleted; their hashes stay",
    "log.opened": "the writer started, or a new shard began",
    "log.closed": "the writer stopped in order, or the shard ends here",
    "log.carried": "what was in force or under way when this shard began, said again",
}
"""Every kind that may be written, with what it means. The writer refuses others."""

ENDS = frozenset({"inference.completed", "inference.failed", "inference.aborted"})
"""The kinds that end an `inference.authorized`."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One leaf. Digests are lowercase hex SHA-256; amounts are integers, epsilon in millionths.

    Parsed by `parse_leaf`, a Record proves that its bytes are canonical and of a known shape. It does not prove that it
    is in any log: `sealgate.transparency.receipt` and `.verifier` do.
    """

    v: int = msgspec.field(default=0)  # 1; the default is never written
    log: str = ""  # origin
    id: str = ""  # UUIDv7 of this record
    kind: str = ""
    ts_us: int = 0
    salt: str = ""  # 16 random bytes, hex: neighbours' hashes cannot be guessed
    tenant: str = ""
    actor: str = ""  # random pseudonym
    authn: str = ""
    model: str = ""
    model_digest: str = ""
    certificate_digest: str = ""
    policy_digest: str = ""
    policy_ids: tuple[str, ...] = ()
    runtime_instance: str = ""
    runtime_seq: int = 0  # the worker's contiguous counter, from 1
    runtime_sig: str = ""  # over Statement, see sealgate.protocol.completion
    operation: str = ""
    purpose: str = ""
    outcome: str = ""
    reason: str = ""
    units: int = 0
    eps_micro: int = 0
    budget_after_micro: int = 0
    req_commit: str = ""  # SHA-256 of the encapsulated request
    resp_commit: str = ""  # SHA-256 of the encapsulated response
    intent_seq: int = -1  # index of the `inference.authorized` that this ends
    grant: str = ""  # its id
    evidence_digest: str = ""
    assurance: str = ""  # "software" unless a hardware root vouches
    degraded: bool = False  # the worker runs without a layer that its profile would require elsewhere
    detail: dict[str, str] = {}  # administrative facts, by kind


def leaf_bytes(record: Record) -> bytes:
    """The canonical bytes. Raises DecodeError if the record is not fit to be written."""
    if record.v != 1 or record.kind not in KINDS or not (record.log and record.id and record.ts_us):
        raise DecodeError("record lacks version, origin, id, time or a known kind")
    if len(record.salt) != 32:
        raise DecodeError("record lacks its salt")
    leaf = canonical_json(record)
    if len(leaf) > MAX_LEAF:
        raise DecodeError("record is larger than a leaf may be")
    return leaf


def parse_leaf(leaf: bytes) -> Record:
    """The record in these exact bytes; raises DecodeError."""
    value = parse_canonical_json(leaf, limit=MAX_LEAF)
    try:
        record = msgspec.convert(value, Record)
    except msgspec.ValidationError as error:
        raise DecodeError("leaf is not a record") from error
    if leaf_bytes(record) != leaf:
        raise DecodeError("leaf is not in canonical form")
    return record


def completion_of(record: Record) -> Completion:
    """Rebuild the worker's signed completion from the record that carries it. Raises LogError if there is none."""
    if not record.runtime_sig:
        raise LogError("the record carries no worker signature", code="no-completion")
    return Completion(
        statement=Statement(
            instance=record.runtime_instance,
            seq=record.runtime_seq,
            grant=record.grant,
            outcome=record.outcome,
            reason=record.reason,
            model=record.model,
            model_digest=record.model_digest,
            certificate_digest=record.certificate_digest,
            units=record.units,
            req_commit=record.req_commit,
            resp_commit=record.resp_commit,
            eps_micro=record.eps_micro,
        ),
        signature=record.runtime_sig,
    )
