"""The host gives a COSE Receipt to who asks for one, and to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.log import AuditLog
from sealgate.protocol.frames import Answer, Caller, Decision, Deny, EvidenceGiven, Recorded, Refused, Submit
from sealgate.transparency.cose_receipt import verify_cose_receipt
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from secure_runtime.host.cose_receipts import with_cose_receipt
from secure_runtime.host.link_server import Reply

ORIGIN = "host.test/log"
SIGNER = NoteSigner.from_seed(ORIGIN, b"\x07" * 32)
CALLER = Caller(tenant="clinic", subject="app", authn="jwt", credential_binding="binding")
DECISION = Decision(policy_digest="d" * 64)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    url = f"sqlite:///{tmp_path / 'audit.sqlite'}"
    with AuditLog.open(url, signer=SIGNER, subjects_key=b"\x02" * 32, origin=ORIGIN) as opened:
        yield opened


def submit(*, cose: bool) -> Submit:
    return Submit(
        model="m", operation="infer", purpose="p", media_type="x", caller=CALLER, decision=DECISION, cose=cose
    )


def deny(*, cose: bool) -> Deny:
    return Deny(model="m", operation="infer", purpose="p", caller=CALLER, decision=DECISION, cose=cose)


def test_answers_refusals_and_denials_have_one_if_it_is_wanted(log: AuditLog) -> None:
    done = log.append(Record(kind="inference.denied", tenant="clinic", reason="purpose")).result(60)
    given = {"log": ORIGIN, "record": done.index, "receipt": done.receipt}
    replies: list[tuple[Submit | Deny, Reply]] = [
        (submit(cose=True), Answer(media_type="x", **given)),
        (submit(cose=True), Refused(status=503, code="unavailable", **given)),
        (deny(cose=True), Recorded(**given)),
    ]
    for frame, reply in replies:
        told = with_cose_receipt(reply, frame, log)
        assert isinstance(told, Answer | Refused | Recorded)
        verified = verify_cose_receipt(told.cose_receipt, done.leaf, [SIGNER.verifier])
        assert (verified.index, verified.record) == (done.index, done.record)
        for silent in (submit(cose=False), deny(cose=False)):
            assert with_cose_receipt(reply, silent, log) is reply


def test_what_has_no_receipt_of_this_log_stays_as_it_is(log: AuditLog) -> None:
    for reply in (
        Refused(status=503, code="unavailable"),
        EvidenceGiven(),
        Recorded(log=ORIGIN, record=0, receipt=b"of somewhere else"),
    ):
        assert with_cose_receipt(reply, submit(cose=True), log) is reply
