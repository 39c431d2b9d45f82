"""Steps 6 and 10 with a real log and a scripted worker: what is on record before and after, and what lies lead to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log import AuditLog
from audit.query import AuditReader, RecordFilter
from policy.budget import BudgetBook
from policy.budgets import Budget, Window
from sealgate.errors import DecodeError
from sealgate.protocol.completion import Statement, sign_completion
from sealgate.protocol.frames import Answer, AuditRead, Caller, Decision, Deny, Done, Refused, Submit
from sealgate.protocol.ohttp import commitment
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.record import Record
from secure_runtime.errors import RuntimeUnavailable, WorkerGone
from secure_runtime.host import admission as admission_module
from secure_runtime.host.admission import Admission, LiveWorker
from secure_runtime.host.spending import Exhaustions
from secure_runtime.host.worker_link import Outcome

ORIGIN = "host.test/log"
POLICY = "d" * 64
CALLER = Caller(tenant="clinic", subject="app", authn="jwt", credential_binding="binding")
BODY = b"an encapsulated request"
SEALED = b"a sealed answer"


class ScriptedLink:
    """Stands where the link to a worker stands; `script` says what the worker does with a grant."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.seq = 0
        self.aborted: WorkerGone | None = None
        self.script: Callable[[Any, bytes], Outcome] = self.honest

    def abort(self, why: WorkerGone) -> None:
        self.aborted = why

    async def run(self, grant: Any, body: bytes, **_: Any) -> Outcome:
        return self.script(grant, body)

    def honest(
        self,
        given: Any,
        body: bytes,
        *,
        sealed: bytes = SEALED,
        problem: str = "",
        media_type: str = "message/ohttp-res",
        **changes: Any,
    ) -> Outcome:
        self.seq += 1
        values: dict[str, Any] = {
            "instance": "i1",
            "seq": self.seq,
            "grant": given.id,
            "outcome": "refused" if problem else "completed",
            "reason": "replayed" if problem else "",
            "model": given.model,
            "model_digest": "" if problem else "a" * 64,
            "certificate_digest": "" if problem else "b" * 64,
            "units": 0 if problem else 3,
            "req_commit": commitment(body),
            "resp_commit": commitment(sealed) if sealed else "",
            **changes,
        }
        completion = sign_completion(Statement(**values), self.key)
        return Outcome(Done(id=1, completion=completion, problem=problem, media_type=media_type), sealed)


@dataclass
class Desk:
    """Admission over a real log in a folder."""

    folder: Path
    log: AuditLog
    signer: NoteSigner
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    budgets: BudgetBook = field(default_factory=lambda: BudgetBook(()))

    def __post_init__(self) -> None:
        self.link = ScriptedLink(self.key)
        self.alive = True
        self.admission = self.make()

    def make(self, **changes: Any) -> Admission:
        values: dict[str, Any] = {
            "log": self.log,
            "budgets": self.budgets,
            "worker": self.worker,
            "policy_digest": POLICY,
            "max_in_flight": 10,
            "timeout_s": 5.0,
            **changes,
        }
        return Admission(**values)

    def worker(self, model: str = "m", key: int = -1) -> LiveWorker:
        if not self.alive:
            raise RuntimeUnavailable("no worker", code="worker-not-ready")
        return LiveWorker(
            link=self.link,  # type: ignore[arg-type]
            instance="i1",
            completion_key=self.key.public_key(),
            degraded=False,
            assurance="software",
            evidence_digest="e" * 64,
            models={"m": {"1": ("a" * 64, "b" * 64)}},
        )

    def submit(self, *, admission: Admission | None = None, policy: str = POLICY) -> tuple[Any, bytes]:
        frame = Submit(
            id=5,
            model="m",
            operation="infer",
            purpose="treatment",
            media_type="message/ohttp-req",
            caller=CALLER,
            decision=Decision(policy_digest=policy, policy_ids=("clients-infer",)),
            judged=("b" * 64,),
        )

        async def ask() -> tuple[Any, bytes]:
            return await (admission or self.admission).submit(frame, BODY, asyncio.Event())

        return asyncio.run(ask())

    def records(self, prefix: str = "inference.") -> list[Record]:
        with closing(AuditReader(f"sqlite:///{self.folder}/audit.sqlite", origin=ORIGIN)) as reader:
            page = reader.records(RecordFilter(oldest_first=True), limit=1000)
        return [entry.record for entry in page.records if entry.record.kind.startswith(prefix)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(*budgets: Budget) -> Desk:
        book = BudgetBook(budgets)
        signer = NoteSigner.from_seed(ORIGIN, b"s" * 32)
        log = AuditLog.open(
            f"sqlite:///{tmp_path}/audit.sqlite",
            signer=signer,
            subjects_key=b"k" * 32,
            origin=ORIGIN,
            extra_tables=(book.tables,),
            disk_reserve_bytes=0,
        )
        made.append(Desk(tmp_path, log, signer, budgets=book))
        return made[-1]

    yield make
    for one in made:
        one.log.close()


def test_an_answer_leaves_with_both_records_durable(desk: Callable[..., Desk]) -> None:
    one = desk()
    seen: list[list[str]] = []

    def look(grant: Any, body: bytes) -> Outcome:
        one.log.append(Record(kind="audit.query")).result()  # the reader sees what a published checkpoint covers
        seen.append([record.kind for record in one.records()])
        return one.link.honest(grant, body)

    one.link.script = look
    reply, sealed = one.submit()
    assert isinstance(reply, Answer)
    assert sealed == SEALED
    receipt = verify_receipt(reply.receipt, [one.signer.verifier])
    assert (receipt.record.kind, receipt.record.units, receipt.index) == ("inference.completed", 3, reply.record)
    assert (receipt.record.req_commit, receipt.record.resp_commit) == (commitment(BODY), commitment(SEALED))
    assert receipt.record.actor
    assert "app" not in receipt.leaf.decode()
    assert all("inference.authorized" in kinds and "inference.completed" not in kinds for kinds in seen)


@pytest.mark.parametrize(
    "lie",
    [
        {"grant": "another"},
        {"instance": "another"},
        {"model": "another"},
        {"req_commit": "0" * 64},
        {"resp_commit": "0" * 64},
        {"resp_commit": ""},
        {"outcome": "refused"},
        {"outcome": "great"},
        {"reason": "words of its own"},
        {"outcome": "failed", "reason": "replayed"},
        {"units": -1},
        {"units": 2**52 + 1},
        {"model_digest": "c" * 64},
        {"certificate_digest": ""},
        {"model_digest": "", "certificate_digest": ""},
        {"sealed": b""},
        {"problem": "sealed-request-refused"},
        {"problem": "no-such-problem", "sealed": b""},
        {"media_type": "text/html"},
        {"media_type": "message/ohttp-res\r\nset-cookie: a=b"},
        {"media_type": "message/ohttp-chunked-res"},
    ],
    ids=str,
)
def test_a_worker_whose_word_does_not_fit_is_cut_off_and_nothing_leaves(desk: Callable[..., Desk], lie: Any) -> None:
    one = desk()
    one.link.script = lambda grant, body: one.link.honest(grant, body, **lie)
    reply, sealed = one.submit()
    assert (type(reply), reply.status, sealed) == (Refused, 503, b"")
    assert one.link.aborted is not None
    one.log.close()
    assert [(r.kind, r.reason) for r in one.records()][-1] == ("inference.failed", "worker-protocol")


def test_a_completion_signed_by_another_key_is_not_taken(desk: Callable[..., Desk]) -> None:
    one = desk()
    one.link.key = Ed25519PrivateKey.generate()
    reply, _ = one.submit()
    assert reply.status == 503
    one.log.close()
    assert one.records()[-1].reason == "worker-protocol"


@pytest.mark.parametrize(("code", "status"), [("worker-died", 503), ("worker-hung", 504)])
def test_a_dead_worker_is_an_end_on_record(desk: Callable[..., Desk], code: str, status: int) -> None:
    one = desk()

    def die(grant: Any, body: bytes) -> Outcome:
        raise WorkerGone("gone", code=code)

    one.link.script = die
    reply, _ = one.submit()
    record = verify_receipt(reply.receipt, [one.signer.verifier]).record
    assert (reply.status, record.kind, record.reason, record.runtime_sig) == (status, "inference.failed", code, "")


def test_a_gatekeepers_refusal_is_an_end_with_a_signature(desk: Callable[..., Desk]) -> None:
    one = desk()
    one.link.script = lambda grant, body: one.link.honest(
        grant, body, problem="sealed-request-refused", sealed=b"", resp_commit=""
    )
    reply, _ = one.submit()
    record = verify_receipt(reply.receipt, [one.signer.verifier]).record
    assert (reply.status, reply.code) == (400, "sealed-request-refused")
    assert (record.kind, record.outcome, record.reason) == ("inference.failed", "refused", "replayed")
    assert record.runtime_sig


def test_what_cannot_be_served_is_denied_on_record(desk: Callable[..., Desk]) -> None:
    one = desk()
    assert one.submit(admission=one.make(max_in_flight=0))[0].status == 503
    one.alive = False
    assert one.submit()[0].status == 503
    one.log.close()
    found = [(record.kind, record.reason) for record in one.records()]
    assert found == [
        ("inference.denied", "overloaded"),
        ("inference.denied", "worker-not-ready"),
    ]
    assert one.link.seq == 0, "nothing was forwarded"


def test_what_another_policy_decided_is_sent_back_without_a_record(desk: Callable[..., Desk]) -> None:
    one = desk()
    stale = Decision(policy_digest="f" * 64, policy_ids=("p",))
    deny = Deny(model="m", operation="infer", purpose="p", caller=CALLER, decision=stale)
    read = AuditRead(caller=CALLER, decision=stale, kind="audit.query", detail={})
    replies = [
        one.submit(policy="f" * 64)[0],
        asyncio.run(one.admission.deny(deny))[0],
        asyncio.run(one.admission.audit_read(read))[0],
    ]
    assert [(reply.code, reply.record) for reply in replies] == [("policy-changed", -1)] * 3
    size = one.log.state.size
    one.admission.put_in_force("f" * 64, one.budgets)
    assert isinstance(one.submit(policy="f" * 64)[0], Answer)
    assert one.submit()[0].code == "policy-changed"
    one.log.close()
    assert [record.policy_digest for record in one.records()] == ["f" * 64] * 2
    assert size == 1, "log.opened alone"
    assert one.link.seq == 1


def test_a_request_is_held_by_the_budgets_of_the_policy_that_decided_it(desk: Callable[..., Desk]) -> None:
    one = desk(Budget(name="one-a-day", tenant="clinic", window=Window.DAY, requests=1))
    generous = BudgetBook(())
    let = threading.Event()

    def hold_up(_: Any, draft: Record) -> Record:
        assert let.wait(60)
        return draft

    async def play() -> list[Any]:
        frame = Submit(
            model="m",
            operation="infer",
            purpose="treatment",
            media_type="message/ohttp-req",
            caller=CALLER,
            decision=Decision(policy_digest=POLICY, policy_ids=("clients-infer",)),
            judged=("b" * 64,),
        )
        one.log.append(Record(kind="audit.query"), hold_up)
        first, second = (asyncio.ensure_future(one.admission.submit(frame, BODY, asyncio.Event())) for _ in range(2))
        await asyncio.sleep(0)  # both are queued, under the first policy
        one.admission.put_in_force("f" * 64, generous)
        let.set()
        return [(await first)[0], (await second)[0]]

    replies = asyncio.run(play())
    assert sorted(type(reply).__name__ for reply in replies) == ["Answer", "Refused"]
    assert {reply.code for reply in replies if isinstance(reply, Refused)} == {"budget-exhausted"}


def test_a_budget_is_taken_before_and_settled_after(desk: Callable[..., Desk]) -> None:
    budget = Budget(
        name="b", tenant="clinic", subject=None, model=None, requests=2, units=None, units_per_request=1,
        window=Window.DAY,
    )  # fmt: skip
    one = desk(budget)
    assert [type(one.submit()[0]) for _ in range(2)] == [Answer, Answer]
    reply, _ = one.submit()
    assert (reply.status, reply.code) == (429, "budget-exhausted")
    assert reply.retry_after_s >= 1
    record = verify_receipt(reply.receipt, [one.signer.verifier]).record
    assert (record.kind, record.reason, record.detail["budget"]) == ("inference.denied", "budget-exhausted", "b")
    assert one.link.seq == 2


def test_nothing_is_forwarded_and_nothing_leaves_when_the_log_is_closed(desk: Callable[..., Desk]) -> None:
    from audit.errors import LogUnavailable

    one = desk()
    one.log.close()
    with pytest.raises(LogUnavailable):
        one.submit()
    assert one.link.seq == 0


def test_a_denial_is_recorded_with_what_decided(desk: Callable[..., Desk]) -> None:
    one = desk()
    decision = Decision(policy_digest=POLICY, policy_ids=("no-marketing",), reason="policy-forbids")
    frame = Deny(model="m", operation="infer", purpose="marketing", caller=CALLER, decision=decision)
    reply, _ = asyncio.run(one.admission.deny(frame))
    record = verify_receipt(reply.receipt, [one.signer.verifier]).record  # type: ignore[union-attr]
    assert (record.kind, record.reason, record.policy_ids) == (
        "inference.denied",
        "policy-forbids",
        ("no-marketing",),
    )
    assert msgspec.to_builtins(record)["policy_digest"] == POLICY


@pytest.mark.parametrize("what", ["policy_ids", "credential_binding"])
def test_words_of_a_gateway_that_leave_no_room_for_the_end_are_refused_before(
    desk: Callable[..., Desk], what: str
) -> None:
    one = desk()
    caller, ids = CALLER, ("p" * 7400,)
    if what == "credential_binding":
        caller, ids = msgspec.structs.replace(CALLER, credential_binding="b" * 200_000), ("p",)
    frame = Submit(
        model="m",
        operation="infer",
        purpose="treatment",
        media_type="message/ohttp-req",
        caller=caller,
        decision=Decision(policy_digest=POLICY, policy_ids=ids),
        judged=("b" * 64,),
    )
    with pytest.raises(DecodeError):
        asyncio.run(one.admission.submit(frame, BODY, asyncio.Event()))
    one.log.close()
    assert one.records() == []
    assert one.link.seq == 0


def test_a_fault_after_the_grant_is_still_an_end_on_record(desk: Callable[..., Desk]) -> None:
    one = desk()

    def fault(grant: Any, body: bytes) -> Outcome:
        raise ZeroDivisionError

    one.link.script = fault
    with pytest.raises(ZeroDivisionError):
        one.submit()
    one.log.close()
    assert [(record.kind, record.reason) for record in one.records()] == [
        ("inference.authorized", ""),
        ("inference.failed", "internal"),
    ]


def test_a_budget_that_is_used_up_is_put_on_record_once_in_its_window(desk: Callable[..., Desk]) -> None:
    one = desk(Budget(name="b", tenant="clinic", window=Window.DAY, requests=1))
    one.submit()
    for _ in range(3):
        assert one.submit()[0].code == "budget-exhausted"
    assert one.log.append(Record(kind="audit.query")).result(60)  # behind whatever was queued
    found = one.records("budget.")
    denied = [record for record in one.records() if record.kind == "inference.denied"]
    assert (len(found), len(denied)) == (1, 3)
    (record,) = found
    first = min(denied, key=lambda each: each.ts_us)
    assert record.detail == {"budget": "b", "renews_us": first.detail["renews_us"], "denied": first.id}
    assert (record.tenant, record.actor, record.model) == (first.tenant, first.actor, first.model)
    assert (record.outcome, record.reason) == ("exhausted", "budget-exhausted")


def test_which_exhaustions_were_said_is_bounded_and_begins_anew_with_each_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("secure_runtime.host.spending.MAX_EXHAUSTIONS", 2)

    def denied(budget: str, renews: int, reason: str = "budget-exhausted") -> Record:
        detail = {"budget": budget, "renews_us": str(renews)} if budget else {}
        return Record(kind="inference.denied", id="i", tenant="clinic", actor="a", reason=reason, detail=detail)

    known = Exhaustions()
    assert known.first(denied("b", 5)) is not None
    assert known.first(denied("b", 5)) is None
    assert known.first(denied("b", 9)) is not None  # the next window
    assert known.first(denied("", 9)) is None
    assert known.first(denied("c", 9, reason="privacy-budget-held")) is None
    for name in ("c", "d"):
        assert known.first(denied(name, 9)) is not None
    assert known.first(denied("b", 9)) is not None  # forgotten, and said anew


def test_an_answer_that_the_host_has_no_room_for_is_not_given_out_and_its_record_stands(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = desk()
    monkeypatch.setattr(admission_module, "MAX_UNRECORDED_BYTES", len(SEALED))  # a caller has three quarters of it
    refused, sealed = opened.submit(admission=opened.make())
    assert isinstance(refused, Refused)
    assert (refused.status, refused.code, sealed) == (503, "busy", b"")
    record = verify_receipt(refused.receipt, [opened.signer.verifier]).record
    assert (record.kind, record.resp_commit, record.units) == ("inference.completed", commitment(SEALED), 3)
    monkeypatch.setattr(admission_module, "MAX_UNRECORDED_BYTES", 2 * len(SEALED))
    admission = opened.make()
    for _ in range(3):  # what was recorded makes room
        assert opened.submit(admission=admission)[1] == SEALED


def test_one_caller_leaves_places_in_the_host_for_others_however_many_gateways_it_comes_by(
    desk: Callable[..., Desk],
) -> None:
    """A gateway counts what comes by it; several of them together let one caller have all of the host."""
    one = desk()
    admission = one.make(max_in_flight=4)
    finish = asyncio.Event()

    async def run(grant: Any, body: bytes, **_: Any) -> Outcome:
        await finish.wait()
        return one.link.honest(grant, body)

    one.link.run = run  # type: ignore[method-assign]

    def frame(number: int, subject: str) -> Submit:
        return Submit(
            id=number,
            model="m",
            operation="infer",
            purpose="treatment",
            media_type="message/ohttp-req",
            caller=msgspec.structs.replace(CALLER, subject=subject),
            decision=Decision(policy_digest=POLICY, policy_ids=("clients-infer",)),
            judged=("b" * 64,),
        )

    async def play() -> None:
        asked = [
            asyncio.create_task(admission.submit(frame(number, "greedy"), BODY, asyncio.Event())) for number in range(3)
        ]
        while admission.in_flight[0] < 3:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        refused, _ = await admission.submit(frame(3, "greedy"), BODY, asyncio.Event())
        assert isinstance(refused, Refused)
        assert (refused.status, refused.code) == (503, "unavailable")
        other = asyncio.create_task(admission.submit(frame(4, "other"), BODY, asyncio.Event()))
        while admission.in_flight[0] < 4:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        finish.set()
        assert all(isinstance(reply, Answer) for reply, _ in await asyncio.gather(*asked, other))
        assert admission.in_flight == (0, 0)

    asyncio.run(play())
