"""What a client can tell about one answer, in the order of a request's life.

Steps 1, 2 and 12 the client did itself. The others it knows from the verified record only: the table says so, and says
who vouches. Never: more than was verified.
"""

from __future__ import annotations

from collections.abc import Iterable

from sealgate.client.exchange import SealedAnswer
from sealgate.evidence.transcript import Check
from sealgate.terminal import render_pairs, render_table
from sealgate.transparency.record import Record

_OURS, _LOG, _WORKER = "checked here", "the log's signature", "the worker's signature"


def explain_answer(answer: SealedAnswer) -> str:
    """The twelve steps, then every check of evidence and receipt."""
    record, evidence = answer.receipt.record, answer.evidence
    kem = answer.key_config.kem.name
    steps = [
        (1, f"evidence verified, grade {evidence.grade}; valid until it expires", _OURS),
        (2, f"request sealed with {kem} to key {answer.key_config.key_id}" + _retry(answer), _OURS),
        (3, f"gateway authenticated tenant {record.tenant} ({record.authn}) as {record.actor}", _LOG),
        (4, "gateway read the header of the sealed request; the body stayed opaque to it", "sealing"),
        (
            5,
            f"policy {record.policy_digest[:16]}... permitted {record.operation} for {record.purpose}" + _ids(record),
            _LOG,
        ),
        (6, f"authorized and durable as record {record.intent_seq} before anything was forwarded", _LOG),
        (7, f"worker {record.runtime_instance} unsealed it under grant {record.grant}", _WORKER),
        (8, f"model {record.model}, weights {record.model_digest[:16]}..., {record.units} units", _WORKER),
        (9, f"answer sealed and completion {record.runtime_seq} signed: {record.outcome}", _WORKER),
        (10, f"{record.kind} durable as record {answer.receipt.index} of {record.log}", _LOG),
        (11, "sealed answer and receipt returned by the gateway", "arrival"),
        (12, "receipt matches what was sent and received; the answer was opened after that", _OURS),
    ]
    parts = [
        render_table(("step", "what happened", "known by"), steps),
        "Evidence (step 1)\n" + explain_checks(evidence.transcript),
        "Receipt (step 12)\n" + explain_checks(answer.checked.transcript),
        "Who vouches for what\n" + render_pairs(sorted(evidence.grades.items())),
    ]
    return "\n\n".join(parts)


def explain_checks(checks: Iterable[Check]) -> str:
    """A transcript as a table."""
    return render_table(
        ("check", "result", "what was seen", "decided by"),
        ((check.name, check.outcome, check.detail, check.anchor) for check in checks),
    )


def _retry(answer: SealedAnswer) -> str:
    return "; sealed anew once, because the keys had changed" if answer.retried else ""


def _ids(record: Record) -> str:
    return f" by {', '.join(record.policy_ids)}" if record.policy_ids else ""
