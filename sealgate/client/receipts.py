"""Step 12, first half: a receipt is verified against what was sent and what came back, before anything is opened.

For an answer:
    1  receipt    signed by a log key of the trust file, and the leaf is in the tree
    2  log        the log that the evidence names, and not older than the evidence
    3  kind       a completed inference, or a failed one with a sealed error
    4  request    its commitment is to the exact sealed request that we sent
    5  response   its commitment is to the exact sealed response that we got
    6  worker     the completion is signed by the instance that the evidence names
    7  model      name, weights and certificate are those of the evidence
    8  purpose    purpose and operation are as asked
    9  time       recorded while we waited
    10 state      isolation and assurance are those of the evidence
For a refusal: 1, 2, 8, 9, and of the others whatever the record states.
Once an answer is open, what it says was done to it must be what the record says was spent (`check_obligations`).

Trusts: the trust file, verified evidence, the clock. Never: opens anything; returns a verdict that can be ignored.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sealgate.errors import SealgateError
from sealgate.evidence.transcript import Check, ReceiptRefused, Transcript
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import GRADES, VerifiedEvidence
from sealgate.limits import DATE_WINDOW_S, MAX_NAME, MAX_RECEIPT
from sealgate.protocol.completion import verify_completion
from sealgate.protocol.frames import Obligations
from sealgate.protocol.obligations import encode_obligations
from sealgate.terminal import printable
from sealgate.transparency.cose_receipt import same_proof
from sealgate.transparency.receipt import VerifiedReceipt, verify_receipt
from sealgate.transparency.record import Record, completion_of
from sealgate.transparency.shards import belongs_to

_ANSWERS = {"inference.completed": "completed", "inference.failed": "failed"}
_REFUSALS = ("inference.denied", "inference.failed")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a receipt must be about."""

    model: str
    operation: str
    purpose: str
    req_commit: str
    sent_us: int
    received_us: int
    version: str = ""  # of the model, if the request named one


@dataclass(frozen=True, kw_only=True)
class CheckedReceipt:
    """A receipt that is about one exchange; made only by the functions below. `raw` can be kept as evidence."""

    verified: VerifiedReceipt
    raw: bytes
    transcript: tuple[Check, ...]


def decode_receipt_header(text: str) -> bytes:
    """The receipt in an `Audit-Receipt` header: base64url without padding. Raises ReceiptRefused."""
    try:
        if len(text) > MAX_RECEIPT * 4 // 3 + 4 or "=" in text:
            raise ValueError("length or padding")
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        transcript = Transcript(subject="receipt", refusal=ReceiptRefused, strict=True)
        transcript.fail("receipt", "the Audit-Receipt header is malformed", anchor="RFC 4648", cause=error)


def check_answer(
    raw: bytes, asked: Asked, *, resp_commit: str, evidence: VerifiedEvidence, trust: Trust
) -> CheckedReceipt:
    """The receipt that came with a sealed answer; raises ReceiptRefused at the first check that fails."""
    transcript = Transcript(subject="receipt", refusal=ReceiptRefused, strict=True)
    verified = _check_log(raw, evidence, trust, transcript)  # 1, 2
    record = verified.record
    transcript.require(  # 3
        _ANSWERS.get(record.kind, "-") == record.outcome,
        "kind",
        record.kind,
        anchor="record",
        otherwise="it is not the record of an answered request",
    )
    transcript.require(  # 4
        record.req_commit == asked.req_commit,
        "request",
        f"SHA-256 {asked.req_commit[:16]}... of what we sent",
        anchor="record",
        otherwise="it is about another request than the one we sent",
    )
    transcript.require(  # 5
        record.resp_commit == resp_commit,
        "response",
        f"SHA-256 {resp_commit[:16]}... of what we got",
        anchor="record",
        otherwise="it is about another answer than the one we got",
    )
    _check_worker(record, evidence, transcript)  # 6
    _check_model(record, asked, evidence, transcript)  # 7
    _check_purpose(record, asked, transcript)  # 8
    _check_time(record, asked, transcript)  # 9
    _check_state(record, evidence, transcript)  # 10
    return CheckedReceipt(verified=verified, raw=raw, transcript=transcript.checks)


def check_obligations(checked: CheckedReceipt, obligations: Obligations) -> CheckedReceipt:
    """The duties that an opened answer states, held against its verified record; raises ReceiptRefused.

    Taking a `CheckedReceipt` is how `receipt-required` is kept, whatever the caller's settings: without a verified
    receipt of exactly this answer nothing gets as far as here.
    """
    transcript = Transcript(subject="answer", refusal=ReceiptRefused, strict=True)
    epsilon_micro, spent_micro = obligations.noise_epsilon_micro, checked.verified.record.eps_micro
    fits = spent_micro > 0 and spent_micro % epsilon_micro == 0 if epsilon_micro else spent_micro == 0
    transcript.require(
        fits,
        "obligations",
        encode_obligations(obligations) or "none",
        anchor="record",
        otherwise="the noise that it says it has is not what the record says was spent",
    )
    return replace(checked, transcript=checked.transcript + transcript.checks)


def check_refusal(raw: bytes, asked: Asked, *, evidence: VerifiedEvidence, trust: Trust) -> CheckedReceipt:
    """The receipt that came with a refusal; raises ReceiptRefused. A refusal may come from an instance that replaced
    the one in our evidence: then the log's signature speaks for it, and the transcript says so."""
    transcript = Transcript(subject="receipt of the refusal", refusal=ReceiptRefused, strict=False)
    verified = _check_log(raw, evidence, trust, transcript)
    record = verified.record
    transcript.require(
        record.kind in _REFUSALS and not record.resp_commit,
        "kind",
        f"{record.kind} {record.reason}".strip(),
        anchor="record",
        otherwise="it is not the record of a refused request",
    )
    if record.req_commit:
        otherwise = "it is about another request than the one we sent"
        detail = f"SHA-256 {asked.req_commit[:16]}... of what we sent"
        transcript.require(
            record.req_commit == asked.req_commit, "request", detail, anchor="record", otherwise=otherwise
        )
    else:
        transcript.skipped("request", "refused before the sealed request was looked at", anchor="record")
    if record.runtime_sig and record.runtime_instance == evidence.claims.instance:
        _check_worker(record, evidence, transcript)
    else:
        transcript.skipped("worker", "the instance of our evidence did not take part", anchor="record")
    otherwise = "it is about another model than the one asked for"
    transcript.require(record.model == asked.model, "model", record.model, anchor="record", otherwise=otherwise)
    _check_purpose(record, asked, transcript)
    _check_time(record, asked, transcript)
    return CheckedReceipt(verified=verified, raw=raw, transcript=transcript.checks)


def check_cose(raw: bytes, checked: CheckedReceipt, *, trust: Trust) -> bytes:
    """A COSE Receipt that came beside a receipt, if it proves the same; raises ReceiptRefused."""
    try:
        same_proof(raw, checked.verified, trust.log_keys)
    except SealgateError as error:
        transcript = Transcript(subject="COSE receipt", refusal=ReceiptRefused, strict=True)
        transcript.fail("receipt", "it does not prove what the receipt does", anchor="log_keys", cause=error)
    return raw


def recorded_budget(checked: CheckedReceipt) -> tuple[str, datetime | None]:
    """The budget that a verified denial names, and when it renews; None for never. ("", None) if it names none."""
    detail = checked.verified.record.detail
    name, renews_us = printable(detail.get("budget", ""), limit=MAX_NAME), detail.get("renews_us", "")
    if not name or not renews_us.isdecimal() or len(renews_us) > 16 or renews_us == "0":
        return name, None
    return name, datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(renews_us))


def _check_log(raw: bytes, evidence: VerifiedEvidence, trust: Trust, transcript: Transcript) -> VerifiedReceipt:
    if len(raw) > MAX_RECEIPT:
        transcript.fail("receipt", "it is larger than a receipt may be", anchor="limit")
    try:
        verified = verify_receipt(raw, trust.log_keys)
    except SealgateError as error:
        transcript.fail("receipt", "its signature or inclusion proof does not hold", anchor="log_keys", cause=error)
    transcript.passed("receipt", f"record {verified.index} of {verified.checkpoint.size}", anchor="log_keys")
    origins = {verified.checkpoint.origin, verified.record.log}
    if not all(belongs_to(origin, evidence.claims.log_origin) for origin in origins):
        transcript.fail("log", "it is from another log than the evidence names", anchor="evidence")
    if verified.index < evidence.checkpoint.size:
        transcript.fail("log", "it is older than the evidence: a record of an earlier request", anchor="evidence")
    transcript.passed("log", evidence.claims.log_origin, anchor="evidence")
    return verified


def _check_worker(record: Record, evidence: VerifiedEvidence, transcript: Transcript) -> None:
    if record.runtime_instance != evidence.claims.instance:
        transcript.fail("worker", "another instance answered than the one in the evidence", anchor="evidence")
    try:
        statement = verify_completion(completion_of(record), evidence.completion_key)
    except SealgateError as error:
        transcript.fail("worker", "the worker's signature does not hold", anchor="completion key", cause=error)
    if not statement.grant or statement.seq < 1:
        transcript.fail("worker", "the worker's statement names no grant", anchor="completion key")
    transcript.passed("worker", f"instance {statement.instance}, its number {statement.seq}", anchor="completion key")


def _check_model(record: Record, asked: Asked, evidence: VerifiedEvidence, transcript: Transcript) -> None:
    seen = (record.model, record.model_digest, record.certificate_digest)
    for facts in evidence.versions(asked.model, asked.version):
        if seen == (facts.name, facts.model_digest, facts.certificate_digest):
            detail = f"{facts.name} {facts.version}, weights {facts.model_digest[:16]}..."
            transcript.passed("model", detail, anchor="evidence")
            return
    transcript.fail("model", "another model, or other weights, answered than the evidence names", anchor="evidence")


def _check_purpose(record: Record, asked: Asked, transcript: Transcript) -> None:
    if (record.purpose, record.operation) != (asked.purpose, asked.operation):
        transcript.fail("purpose", "it was recorded for another purpose or operation than asked", anchor="record")
    transcript.passed("purpose", f"{record.operation} for {record.purpose}", anchor="record")


def _check_time(record: Record, asked: Asked, transcript: Transcript) -> None:
    window_us = DATE_WINDOW_S * 1_000_000
    if not asked.sent_us - window_us <= record.ts_us <= asked.received_us + window_us:
        transcript.fail("time", "it was recorded at another time; check this machine's clock", anchor="clock")
    transcript.passed("time", f"within {DATE_WINDOW_S} s of our clock", anchor="clock")


def _check_state(record: Record, evidence: VerifiedEvidence, transcript: Transcript) -> None:
    claims = evidence.claims
    recorded = GRADES.index(record.assurance) if record.assurance in GRADES else -1
    if recorded < GRADES.index(evidence.grade) or (record.degraded and not claims.degraded):
        transcript.fail("state", "the runtime was less assured or less isolated than its evidence", anchor="evidence")
    if record.evidence_digest != evidence.state_digest:
        transcript.fail("state", "the record names another runtime state than the evidence", anchor="evidence")
    transcript.passed("state", f"{record.assurance}, state {evidence.state_digest[:16]}...", anchor="evidence")
