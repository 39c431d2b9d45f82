"""What noised answers cost, over a real log: held, settled, recorded, refused, and never more than there is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import NullPool, create_engine, text

from audit.log import AuditLog
from policy.budget import BudgetBook
from policy.budgets import Budget, PrivacyBudget, Window
from sealgate.ambient import now_us
from sealgate.errors import DecodeError
from sealgate.protocol.frames import Answer, Decision, Obligations, Refused, Submit
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.receipt import verify_receipt
from sealgate.transparency.record import ENDS, Record, completion_of
from secure_runtime.errors import WorkerGone
from secure_runtime.host import spending
from tests.secure_runtime.host.test_admission import BODY, CALLER, ORIGIN, POLICY, Desk

NOISE = Obligations(noise_epsilon_micro=500_000, noise_rows=4)
SEED = b"s" * 32


def whole(name: str = "patients-ever", epsilon: str = "10", **changes: Any) -> PrivacyBudget:
    values = {"population": "patients", "models": ("m",), "window": Window.FOREVER, **changes}
    return PrivacyBudget(name=name, epsilon=epsilon, **values)


class NoisyDesk(Desk):
    """A desk whose requests must be noised, and a worker that spends as it is told."""

    spends = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.link.script = lambda grant, body: self.link.honest(grant, body, eps_micro=self.spends)

    def frame(self, obligations: Obligations = NOISE, **changes: Any) -> Submit:
        values: dict[str, Any] = {
            "id": 5, "model": "m", "operation": "infer", "purpose": "treatment", "media_type": "message/ohttp-req",
            "caller": CALLER, "decision": Decision(policy_digest=POLICY, policy_ids=("p",), obligations=obligations),
            "judged": ("b" * 64,),
            **changes,
        }  # fmt: skip
        return Submit(**values)

    def ask(self, obligations: Obligations = NOISE, **changes: Any) -> Any:
        return asyncio.run(self.admission.submit(self.frame(obligations, **changes), BODY, asyncio.Event()))[0]

    def ends(self) -> list[Record]:
        return [record for record in self.records() if record.kind in ENDS]

    def ledger(self, name: str = "patients-ever") -> tuple[int, int]:
        rows = self.rows("SELECT spent_micro, held_micro FROM privacy_use WHERE budget = :name", name=name)
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    def rows(self, query: str, **values: str) -> list[Any]:
        """What the database answers, on a connection of its own that is gone afterwards."""
        engine = create_engine(f"sqlite:///{self.folder}/audit.sqlite", poolclass=NullPool)
        with engine.connect() as connection:
            return list(connection.execute(text(query), values).all())


def open_log(folder: Path, book: BudgetBook, **more: Any) -> AuditLog:
    return AuditLog.open(
        f"sqlite:///{folder}/audit.sqlite",
        signer=NoteSigner.from_seed(ORIGIN, SEED),
        subjects_key=b"k" * 32,
        origin=ORIGIN,
        extra_tables=(book.tables,),
        disk_reserve_bytes=0,
        **more,
    )


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., NoisyDesk]]:
    made: list[NoisyDesk] = []

    def make(*privacy: PrivacyBudget, counted: tuple[Budget, ...] = ()) -> NoisyDesk:
        book = BudgetBook(counted, privacy)
        signer = NoteSigner.from_seed(ORIGIN, SEED)
        made.append(NoisyDesk(tmp_path, open_log(tmp_path, book), signer, budgets=book))
        return made[-1]

    yield make
    for one in made:
        one.log.close()


def record_of(one: Desk, reply: Any) -> Record:
    return verify_receipt(reply.receipt, [one.signer.verifier]).record


def test_the_most_is_held_before_and_what_was_signed_is_spent_after(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole())
    seen: list[tuple[int, int]] = []

    def look(grant: Any, body: bytes) -> Any:
        seen.append(one.ledger())
        return one.link.honest(grant, body, eps_micro=1_500_000)

    one.link.script = look
    end = record_of(one, one.ask())
    assert seen == [(0, 2_000_000)], "four rows are held, durably, before the worker sees anything"
    assert one.ledger() == (1_500_000, 0)
    assert (end.eps_micro, end.budget_after_micro, end.detail) == (
        1_500_000,
        8_500_000,
        {"privacy_budget": "patients-ever"},
    )
    assert completion_of(end).statement.eps_micro == 1_500_000
    one.log.close()
    begun = one.records()[0]
    assert (begun.eps_micro, begun.budget_after_micro) == (2_000_000, 8_000_000)
    assert begun.detail == {"privacy_budget": "patients-ever"}


def test_what_was_spent_on_record_is_what_the_ledger_says(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole(epsilon="100"))
    for spends in (500_000, 2_000_000, 1_000_000):
        one.spends = spends
        assert isinstance(one.ask(), Answer)

    def die(grant: Any, body: bytes) -> Any:
        raise WorkerGone("gone")

    one.link.script = die
    reply = one.ask()
    assert reply.status == 503
    lost = record_of(one, reply)
    assert (lost.kind, lost.eps_micro, lost.runtime_sig) == ("inference.failed", 2_000_000, "")
    one.log.close()
    assert one.ledger() == (sum(end.eps_micro for end in one.ends()), 0) == (5_500_000, 0)


def test_a_budget_that_never_renews_is_a_403_that_names_it(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole(epsilon="2.5"))
    assert isinstance(one.ask(), Answer)
    reply = one.ask()
    assert (reply.status, reply.code) == (403, "privacy-budget-exhausted")
    assert (reply.budget, reply.renews_us, reply.retry_after_s) == ("patients-ever", 0, 0)
    denied = record_of(one, reply)
    assert (denied.kind, denied.reason) == ("inference.denied", "privacy-budget-exhausted")
    assert denied.detail == {"budget": "patients-ever", "renews_us": "0"}
    assert denied.eps_micro == 0
    assert one.link.seq == 1, "nothing was forwarded"


def test_what_others_hold_is_busy_not_exhausted(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole(epsilon="3"))
    replies: list[Any] = []

    def ask_meanwhile(grant: Any, body: bytes) -> Any:
        one.link.script = lambda again, sent: one.link.honest(again, sent, eps_micro=500_000)
        frame = one.frame()
        draft = Record(
            kind="inference.authorized", tenant="clinic", actor=one.log.actor("clinic", "app"), model="m",
            operation="infer", purpose="treatment", policy_digest=POLICY, req_commit="a" * 64,
        )  # fmt: skip
        denied = one.log.append(draft, spending.reserve(one.budgets, frame, clock=now_us)).result(30)
        replies.append((denied.record, spending.refusal(denied)))
        return one.link.honest(grant, body, eps_micro=500_000)

    one.link.script = ask_meanwhile
    assert isinstance(one.ask(), Answer)
    [(denied, told)] = replies
    assert (denied.kind, denied.reason) == ("inference.denied", "privacy-budget-held")
    assert (told.status, told.code, told.retry_after_s) == (503, "busy", 1)
    assert isinstance(one.ask(), Answer), "asked again, it fits"


def test_64_threads_through_the_log_never_overspend(desk: Callable[..., NoisyDesk]) -> None:
    """Requests, units and epsilon in one go: each of the three is the tightest for some of the callers."""
    from concurrent.futures import ThreadPoolExecutor

    counted = (
        Budget(name="c", tenant="clinic", window=Window.DAY, requests=30),
        Budget(name="u", tenant="clinic", subject="app", window=Window.DAY, units=1000, units_per_request=100),
    )
    one = desk(whole(epsilon="40"), counted=counted)

    def call(number: int) -> Record:
        caller = msgspec.structs.replace(CALLER, subject="app" if number % 2 else "else")
        frame = one.frame(caller=caller)
        draft = Record(
            kind="inference.authorized", tenant="clinic", actor=one.log.actor("clinic", caller.subject), model="m",
            operation="infer", purpose="treatment", policy_digest=POLICY, req_commit="a" * 64,
        )  # fmt: skip
        begun = one.log.append(draft, spending.reserve(one.budgets, frame, clock=now_us)).result(60)
        if begun.record.kind == "inference.authorized" and number % 4 == 0:
            end = Record(kind="inference.failed", outcome="failed", reason="worker-died", model="m")
            end = msgspec.structs.replace(end, grant=begun.record.id, intent_seq=begun.index)
            one.log.append(end, spending.abandon(one.budgets)).result(60)
        return begun.record

    with ThreadPoolExecutor(64) as pool:
        records = list(pool.map(call, range(64)))
    granted = [record for record in records if record.kind == "inference.authorized"]
    reasons = {record.reason for record in records if record.kind == "inference.denied"}
    assert reasons <= {"budget-exhausted", "privacy-budget-held", "privacy-budget-exhausted"}
    spent, held = one.ledger()
    assert spent + held == len(granted) * 2_000_000 == 40_000_000, "neither more nor, since all asked, less"
    rows = one.rows("SELECT budget, requests_used, units_held FROM budget_use ORDER BY 1")
    assert rows[0] == ("c", 20, 0)
    assert rows[1][1] <= 10
    assert rows[1][2] == 100 * rows[1][1]


def test_a_budget_that_renews_is_a_429_that_says_when(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole("patients-year", "1", window=Window.YEAR))
    reply = one.ask()
    year = datetime.now(UTC).year
    renews_us = int(datetime(year + 1, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    assert (reply.status, reply.code, reply.budget) == (429, "budget-exhausted", "patients-year")
    assert reply.renews_us == renews_us
    assert abs(reply.retry_after_s - (renews_us - now_us()) // 1_000_000) <= 5
    assert record_of(one, reply).reason == "privacy-budget-exhausted"


def test_requests_and_units_name_their_budget_too(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole(), counted=(Budget(name="few", tenant="clinic", window=Window.DAY, requests=0),))
    reply = one.ask()
    assert (reply.status, reply.code, reply.budget) == (429, "budget-exhausted", "few")
    assert reply.renews_us > now_us()
    assert one.ledger() == (0, 0)


def test_noise_without_a_privacy_budget_is_refused_on_record(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole(models=("another",)))
    reply = one.ask()
    assert (reply.status, reply.code, reply.budget) == (403, "forbidden", "")
    assert record_of(one, reply).reason == "no-privacy-budget"
    assert one.link.seq == 0


def test_reading_what_a_model_states_spends_nothing(desk: Callable[..., NoisyDesk]) -> None:
    one = desk()
    one.spends = 0
    reply = one.ask(operation="read-model")
    assert isinstance(reply, Answer)
    assert record_of(one, reply).eps_micro == 0


@pytest.mark.parametrize("spends", [0, 499_999, 750_000, 2_500_000, -500_000])
def test_a_worker_that_spends_what_it_cannot_have_is_cut_off(desk: Callable[..., NoisyDesk], spends: int) -> None:
    """Nothing for an answer, half a row, more than was held: the word does not fit, all that was held is spent."""
    one = desk(whole())
    one.spends = spends
    reply = one.ask()
    assert (type(reply), reply.status) == (Refused, 503)
    assert one.link.aborted is not None
    assert record_of(one, reply).reason == "worker-protocol"
    assert one.ledger() == (2_000_000, 0)


def test_a_worker_that_noises_what_needs_none_is_cut_off(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole())
    assert one.ask(Obligations()).status == 503
    assert one.link.aborted is not None
    assert one.ledger() == (0, 0)


def test_a_refusal_inside_spends_nothing(desk: Callable[..., NoisyDesk]) -> None:
    one = desk(whole())
    turned = {"problem": "sealed-request-refused", "sealed": b"", "resp_commit": ""}
    one.link.script = lambda grant, body: one.link.honest(grant, body, **turned)
    assert one.ask().code == "sealed-request-refused"
    assert one.ledger() == (0, 0)
    one.link.script = lambda grant, body: one.link.honest(
        grant, body, outcome="failed", reason="too-many-noised-rows", eps_micro=0
    )
    assert isinstance(one.ask(), Answer)
    assert one.ledger() == (0, 0)


@pytest.mark.parametrize(
    "obligations",
    [
        Obligations(noise_epsilon_micro=1),
        Obligations(noise_rows=1),
        Obligations(noise_epsilon_micro=-1, noise_rows=1),
        Obligations(noise_epsilon_micro=10**9, noise_rows=1),
        Obligations(noise_epsilon_micro=1, noise_rows=5000),
        Obligations(noise_epsilon_micro=2**62, noise_rows=2**62),
        Obligations(round_digits=-1),  # [0.9, 0.1] would become [0, 0]
        Obligations(round_digits=308),  # and here NaN
        Obligations(top_k=0),
        Obligations(top_k=2**62),
    ],
)
def test_what_no_policy_can_demand_is_a_broken_gateway(
    desk: Callable[..., NoisyDesk], obligations: Obligations
) -> None:
    one = desk(whole())
    for operation in ("infer", "read-model"):
        with pytest.raises(DecodeError):
            one.ask(obligations, operation=operation)
    assert one.link.seq == 0


def test_a_single_use_worker_that_is_not_offered_is_refused_on_record(desk: Callable[..., NoisyDesk]) -> None:
    one = desk()
    one.spends = 0
    reply = one.ask(Obligations(single_use=True))
    assert (reply.status, reply.code) == (503, "unavailable")
    assert (record_of(one, reply).kind, record_of(one, reply).reason) == ("inference.denied", "obligation-unmet")
    assert one.link.seq == 0
    plain = one.worker
    one.admission = one.make(worker=lambda *_: _offering(plain()))
    assert isinstance(one.ask(Obligations(single_use=True)), Answer)


def _offering(worker: Any) -> Any:
    import dataclasses

    return dataclasses.replace(worker, single_use=True)


def test_64_callers_at_once_never_overspend(desk: Callable[..., NoisyDesk]) -> None:
    """Through admission, the log's writer and its transactions: 10 of 64 fit, the others are told so."""
    one = desk(whole(epsilon="20"), counted=(Budget(name="c", tenant="clinic", window=Window.DAY, requests=50),))
    one.spends = 2_000_000
    admission = one.make(max_in_flight=100)

    async def storm() -> list[Any]:
        asked = [admission.submit(one.frame(), BODY, asyncio.Event()) for _ in range(64)]
        return [reply for reply, _ in await asyncio.gather(*asked)]

    replies = asyncio.run(storm())
    told = Counter(getattr(reply, "code", "answered") for reply in replies)
    assert told["answered"] == 10
    assert set(told) <= {"answered", "busy", "privacy-budget-exhausted"}
    assert one.ledger() == (20_000_000, 0)
    one.log.close()
    assert sum(end.eps_micro for end in one.ends()) == 20_000_000
    assert one.rows("SELECT requests_used FROM budget_use") == [(10,)]


def test_what_a_crash_cut_off_is_spent_whole_and_says_so(desk: Callable[..., NoisyDesk], tmp_path: Path) -> None:
    """The host dies while the worker works: the next start writes the end, with everything that was held."""
    one = desk(whole())
    reserve = spending.reserve(one.budgets, one.frame(), clock=now_us)
    draft = Record(
        kind="inference.authorized", tenant="clinic", actor=one.log.actor("clinic", "app"), model="m",
        operation="infer", purpose="treatment", policy_digest=POLICY, req_commit="a" * 64,
    )  # fmt: skip
    begun = one.log.append(draft, reserve).result(30).record
    assert (begun.eps_micro, one.ledger()) == (2_000_000, (0, 2_000_000))
    one.log.close()
    again = open_log(tmp_path, one.budgets, on_abort=spending.abandon(one.budgets))
    again.close()
    [end] = one.ends()
    assert (end.kind, end.grant, end.eps_micro) == ("inference.aborted", begun.id, 2_000_000)
    assert (end.budget_after_micro, end.detail) == (8_000_000, {"privacy_budget": "patients-ever"})
    assert one.ledger() == (2_000_000, 0)
    assert msgspec.to_builtins(end)["eps_micro"] == 2_000_000
