"""Each report against a plain reckoning over the same records, and over bundles: proven, or no report at all."""

from __future__ import annotations

import io
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecodeError, LogError
from sealgate.transparency.pruned import Indices
from sealgate.transparency.record import KINDS, Record
from sealgate.transparency.reports.bundles import report_from_bundle
from sealgate.transparency.reports.catalogue import REPORTS, require_report
from sealgate.transparency.reports.counting import add_up, counted
from sealgate.transparency.reports.form import Part, Report
from sealgate.transparency.reports.question import Question
from sealgate.transparency.verifier import LogTrust

NAMES = {"tenant": "ab", "actor": "xy", "model": "mn", "purpose": "pq"}
WHO = {name: st.sampled_from(values) for name, values in NAMES.items()}
COUNTED = ("inference.authorized", "inference.completed", "inference.failed", "inference.aborted", "inference.denied")

records = st.lists(
    st.builds(
        Record,
        kind=st.sampled_from([*COUNTED, "auth.failed", "audit.query", "policy.change"]),
        ts_us=st.integers(1, 1000),
        reason=st.sampled_from(["", "purpose", "budget"]),
        operation=st.sampled_from(["infer", "read-model"]),
        units=st.integers(0, 5),
        eps_micro=st.integers(0, 5),
        **WHO,  # type: ignore[arg-type]
    ),
    max_size=30,
)
questions = st.builds(
    Question,
    from_us=st.none() | st.integers(0, 500),
    to_us=st.none() | st.integers(501, 1001),
    **{name: st.none() | values for name, values in WHO.items()},
)


def ask(name: str, shown: list[Record], question: Question | None = None, first: int = 0) -> Any:
    fold = require_report(name, question or Question()).begin(question or Question())
    for index, record in enumerate(shown, first):
        fold.see(index, record, b"")
    return fold.answer(Part(first, first + len(shown) - 1, whole=True))


def rows(answer: Any, title: str) -> list[tuple[Any, ...]]:
    (table,) = (one for one in answer.tables if one.title == title)
    assert all(len(row) == len(table.columns) for row in table.rows)
    return list(table.rows)


def cell(answer: Any, title: str, name: str) -> Any:
    return dict(row[:2] for row in rows(answer, title))[name]


@settings(max_examples=100, deadline=None)
@given(shown=records, question=questions)
def test_access_against_a_plain_reckoning(shown: list[Record], question: Question) -> None:
    expected: dict[tuple[str, ...], list[Any]] = {}
    for record in shown:
        wanted = all(getattr(question, name) in (None, getattr(record, name)) for name in NAMES)
        inside = (question.from_us or 0) <= record.ts_us < (question.to_us or 10**6)
        if record.kind in COUNTED[:4] and wanted and inside:
            key = (record.tenant, record.actor, record.model, record.operation, record.purpose)
            row = expected.setdefault(key, [0] * 6 + [10**9, 0])
            row[COUNTED.index(record.kind)] += 1
            ends = record.kind != "inference.authorized"
            row[4] += record.units * ends
            row[5] += record.eps_micro * ends
            row[6:] = [min(row[6], record.ts_us), max(row[7], record.ts_us)]
    assert rows(ask("access", shown, question), "use of models") == [(*key, *expected[key]) for key in sorted(expected)]


@settings(max_examples=60, deadline=None)
@given(shown=records, question=questions, name=st.sampled_from(["access", "denials"]))
def test_groups_count_like_the_records_they_were_made_of(shown: list[Record], question: Question, name: str) -> None:
    inside = [counted(record) for record in shown if question.covers_time(record.ts_us)]
    by_groups: Any = require_report(name, question).begin(question)
    for group in add_up(inside):
        by_groups.take(group)
    assert by_groups.answer(Part(0, 0, whole=True)) == ask(name, shown, question)


def test_denials_are_counted_by_reason_and_a_record_of_failed_authentication_stands_for_many() -> None:
    failed = Record(kind="auth.failed", reason="token-expired", ts_us=5, detail={"count": "41", "source": "public"})
    denied = Record(
        kind="inference.denied",
        reason="purpose",
        ts_us=6,
        tenant="a",
        actor="x",
        model="m",
        operation="infer",
        purpose="p",
    )
    odd = msgspec.structs.replace(failed, detail={"count": "-1e9"})
    answer = ask("denials", [failed, denied, odd])
    assert rows(answer, "refusals by reason") == [
        ("auth.failed", "token-expired", 42, 5, 5),
        ("inference.denied", "purpose", 1, 6, 6),
    ]
    assert rows(answer, "requests that were denied") == [("a", "x", "m", "infer", "p", "purpose", 1, 6, 6)]


def life() -> list[Record]:
    """A host that opens, serves one worker, changes its policy, restarts."""
    policy = {"name": "clinic", "version": "1", "by": "uid:7"}
    kinds: list[dict[str, Any]] = [
        {"kind": "log.opened"},
        {"kind": "policy.change", "policy_digest": "p1", "detail": policy},
        {"kind": "worker.start", "runtime_instance": "w1", "evidence_digest": "e1", "detail": {"profile": "strict"}},
        {"kind": "model.load", "runtime_instance": "w1", "model": "m", "model_digest": "d", "eps_micro": 3_000_000},
        {"kind": "model.refuse", "runtime_instance": "w1", "model": "n", "reason": "signature"},
        {"kind": "key.rotate", "runtime_instance": "w1", "detail": {"key_ids": "1"}},
        {"kind": "key.rotate", "runtime_instance": "w1", "detail": {"key_ids": "1 2"}},
        {"kind": "policy.change", "policy_digest": "p2", "detail": {**policy, "version": "2"}},
        {"kind": "worker.stop", "runtime_instance": "w1", "reason": "crashed"},
        {"kind": "log.closed"},
        {"kind": "log.opened"},
        {"kind": "worker.start", "runtime_instance": "w2", "evidence_digest": "e2"},
    ]
    return [Record(ts_us=(at + 1) * 100, **fields) for at, fields in enumerate(kinds)]


@pytest.mark.parametrize(
    ("at_us", "policy", "worker", "models", "keys"),
    [
        (699, "p1", "w1", {"m": 3_000_000, "n": 0}, "1"),
        (700, "p1", "w1", {"m": 3_000_000, "n": 0}, "1 2"),
        (800, "p2", "w1", {"m": 3_000_000, "n": 0}, "1 2"),
        (900, "p2", None, {}, None),
        (1000, "p2", None, {}, None),
        (None, "p2", "w2", {}, None),
        (299, "p1", None, {}, None),
    ],
)
def test_what_was_in_force(at_us: int | None, policy: str, worker: str | None, models: Any, keys: str | None) -> None:
    answer = ask("in-force", life(), Question(at_us=at_us))
    assert cell(answer, "policy", "policy") == policy
    facts = dict(rows(answer, "worker and keys"))
    assert (facts.get("worker"), facts.get("key_ids")) == (worker, keys)
    assert {row[0]: row[5] for row in rows(answer, "models")} == models
    assert answer.limits == ()
    assert cell(answer, "policy", "log") == ("closed: nothing was served" if at_us == 1000 else "open")


def test_what_was_in_force_before_the_records_is_not_guessed() -> None:
    assert len(ask("in-force", life()[2:5], first=2).limits) == 2
    assert "no record" in ask("in-force", life(), Question(at_us=1)).limits[-1]


def test_every_operation_is_listed_and_reads_are_counted() -> None:
    reads = [
        Record(kind="audit.query", ts_us=at, tenant="a", actor="eve", detail={"question": "records"})
        for at in (2000, 2001)
    ]
    erased = Record(kind="credential.revoke", ts_us=2002, tenant="a", detail={"by": "uid:0", "note": "stolen"})
    use = [Record(kind=kind, ts_us=5) for kind in (*COUNTED, "auth.failed")]
    answer = ask("break-glass", [*life(), *reads, erased, *use])
    assert [row[0] for row in rows(answer, "operations")] == [*range(12), 14]
    assert rows(answer, "operations")[-1][5:] == ("uid:0", "", "note=stolen")
    assert rows(answer, "reads by auditors") == [("a", "eve", "audit.query", "records", 2, 2000, 2001)]
    only = ask("break-glass", [*life(), *reads, erased], Question(tenant="a", from_us=2001))
    assert [len(table.rows) for table in only.tables] == [1, 1]


def test_no_kind_of_record_is_nobodys_business() -> None:
    """Whatever kind is added: it is use of a model, a read, or in the list of operations."""
    seen = [Record(kind=kind, ts_us=1) for kind in KINDS]
    answer = ask("break-glass", seen)
    listed = {row[2] for table in answer.tables for row in table.rows}
    assert listed == {kind for kind in KINDS if not kind.startswith("inference.") and kind != "auth.failed"}


def review(first: int, last: int, **fields: Any) -> Record:
    return Record(kind="audit.review", ts_us=9, actor="eve", detail={"first": str(first), "last": str(last)}, **fields)


def test_reviews_and_what_they_leave_out() -> None:
    shown = [Record(kind="audit.query", ts_us=1)] * 10
    shown += [review(2, 4), review(4, 6), review(8, 8), review(11, 99), review(-5, 3), review(9, 2)]
    answer = ask("review", shown)
    assert rows(answer, "records that no review covers") == [(0, 1, 2), (7, 7, 1), (9, 15, 7)]
    assert len(rows(answer, "reviews")) == 6
    assert rows(ask("review", shown, first=3), "records that no review covers")[0] == (7, 7, 1)


def test_many_reviews_are_told_in_time() -> None:
    """Each of one record, none beside another: fifty thousand took a service's thread for minutes."""
    fold = require_report("review", Question()).begin(Question())
    began = time.process_time()
    for number in range(20_000):
        fold.see(10**6 + number, review(2 * number, 2 * number), b"")
    fold.answer(Part(0, 10**6, whole=False))
    assert time.process_time() - began < 10


@settings(max_examples=100, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8),
    first=st.integers(0, 20),
    length=st.integers(1, 20),
)
def test_what_no_review_covers_against_a_set(ranges: list[tuple[int, int]], first: int, length: int) -> None:
    fold = require_report("review", Question()).begin(Question())
    covered: set[int] = set()
    for low, high in ranges:
        fold.see(1000, review(low, high), b"")
        covered |= set(range(low, high + 1))
    answer = fold.answer(Part(first, first + length - 1, whole=True))
    said = [index for low, high, _ in rows(answer, "records that no review covers") for index in range(low, high + 1)]
    assert said == [index for index in range(first, first + length) if index not in covered]


def test_budget_names_spending_refusals_and_policies(log: Any) -> None:
    left, noon = {"privacy_budget": "patients"}, 43_200_000_000
    shown = [
        Record(kind="log.opened", ts_us=noon + 1),
        Record(kind="policy.change", ts_us=noon + 2, policy_digest="p1", detail={"name": "clinic", "version": "3"}),
        Record(kind="inference.authorized", id="g", ts_us=noon + 3, eps_micro=10, budget_after_micro=90, detail=left),
        Record(kind="inference.authorized", id="h", ts_us=noon + 4, eps_micro=20, budget_after_micro=70, detail=left),
        Record(
            kind="inference.completed",
            grant="g",
            ts_us=noon + 5,
            tenant="a",
            model="m",
            purpose="p",
            units=2,
            eps_micro=4,
            budget_after_micro=76,
            runtime_sig="s",
            detail=left,
        ),
        Record(
            kind="inference.denied", ts_us=noon + 6, reason="budget", detail={"budget": "patients", "renews_us": "0"}
        ),
    ]
    answer = ask("budget", shown)
    assert rows(answer, "spent") == [("a", "m", "p", 1, 2, 4)]
    assert rows(answer, "privacy budgets") == [("patients", 2, 0, 4, 20, 76, 4)]
    assert rows(answer, "exhausted") == [("patients", 1, noon + 6)]
    assert rows(answer, "granted by policies") == [(1, noon + 2, "clinic", "3", "", "", "p1")]
    assert answer.findings == ()
    shown[4] = msgspec.structs.replace(shown[4], budget_after_micro=77)
    assert "77 left of budget patients, the records say 76" in ask("budget", shown).findings[0]


# Bundles --------------------------------------------------------------------------------------------------------------


def over(log: Any, name: str, bundle: io.BytesIO | None = None, **asked: Any) -> Report:
    trust = LogTrust(verifiers=(log.signer.verifier,))
    return report_from_bundle(bundle or log.bundle(), trust, name=name, question=Question(**asked))


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_over_a_bundle_is_proven_and_canonical(log: Any, name: str) -> None:
    report = over(log, name)
    assert (report.ok, report.basis.proven, report.basis.size) == (True, True, len(log.leaves))
    assert msgspec.json.decode(report.document(), type=Report) == report
    assert report.digest() == over(log, name).digest()


def test_a_bundle_that_was_changed_gives_no_report(log: Any) -> None:
    leaves = [leaf.replace(b'"care"', b'"cure"') for leaf in log.leaves]
    with pytest.raises(LogError, match="proves nothing"):
        over(log, "access", log.bundle(leaves=leaves))
    log.signer = type(log.signer).from_seed(log.origin, b"\x09" * 32)
    note = log.checkpoint()
    log.signer = type(log.signer).from_seed(log.origin, b"\x01" * 32)
    with pytest.raises(LogError, match="proves nothing"):
        over(log, "access", log.bundle(note=note))
    with pytest.raises(LogError, match="proves nothing"):
        over(log, "access", io.BytesIO(b"no bundle"))


def test_a_range_that_the_bundle_does_not_hold_is_refused(log: Any) -> None:
    assert over(log, "completeness", log.bundle(2, 6), first=3, last=5).basis.first == 3
    for asked in ({"first": 1}, {"last": 7}):
        with pytest.raises(LogError, match="2 to 6 only"):
            over(log, "completeness", log.bundle(2, 6), **asked)


def test_part_of_a_log_says_so(log: Any) -> None:
    assert not any("looked at" in text for text in over(log, "access").limits)
    assert any("only 2 to 6 were looked at" in text for text in over(log, "access", log.bundle(2, 6)).limits)


def test_what_the_verifier_finds_wrong_is_a_finding(log: Any) -> None:
    log.append(kind="inference.completed", grant="nothing", intent_seq=3)
    for name in ("access", "reconcile"):
        report = over(log, name)
        assert not report.ok
        assert any("ends nothing that is open" in text for text in report.findings)
    (table,) = over(log, "reconcile").tables
    assert table.rows[0][:2] == ("every authorized request has exactly one end", "failed")


def test_completeness_says_what_is_there_and_what_jumped(log: Any) -> None:
    log.append(kind="log.opened")  # after a crash
    log.append(kind="audit.query", ts_us=1_000_000_000_000 - 250)
    answer = over(log, "completeness")
    facts = dict(answer.tables[0].rows)
    assert list(facts.values()) == [len(log.leaves), 0, 1, 9 * 1000 + 250, 1]
    assert sum(count for _, count in answer.tables[2].rows) == len(log.leaves)
    assert answer.findings == ()


def test_completeness_counts_what_is_missing_and_finds_what_is_out_of_order(log: Any) -> None:
    for indices, missing, wrong in (((0, 1, 3), 1, ""), ((0, 2, 1, 3), 0, "after record 2 comes record 1")):
        fold = require_report("completeness", Question()).begin(Question())
        for index in indices:
            fold.see(index, log.records[index], b"")
        answer = fold.answer(Part(0, 3, whole=True))
        assert dict(answer.tables[0].rows)["records that are no longer kept"] == missing
        assert "".join(answer.findings) == wrong


# Records that are no longer kept --------------------------------------------------------------------------------------


def shown_without(log: Any, name: str, missing: set[int]) -> Any:
    fold = require_report(name, Question()).begin(Question())
    for index, record in enumerate(log.records):
        if index not in missing:
            fold.see(index, record, log.leaves[index])
    return fold.answer(Part(0, len(log.records) - 1, whole=True, size=len(log.records)))


@pytest.mark.parametrize("missing", [{2}, {3}, {2, 3}, {0, 1}, {0, 1, 2, 3}, {2, 5}])
def test_records_that_are_no_longer_kept_are_no_contradiction_if_that_was_announced(
    log: Any, missing: set[int]
) -> None:
    """2 and 3 begin and end the first request; 0 and 1 open the log and start its worker."""
    detail = {"pruned": str(Indices.of(sorted(missing))), "shortest_us": "1"}
    log.append(kind="retention.pruned", detail=detail, ts_us=10**15)
    answer = shown_without(log, "reconcile", missing)
    assert answer.findings == ()


def test_records_that_are_withheld_are_a_finding(log: Any) -> None:
    assert any("never announced" in text for text in shown_without(log, "reconcile", {2, 3}).findings)


def test_a_part_of_the_log_accuses_nobody_of_withholding_what_is_announced_behind_it(log: Any) -> None:
    for size in (0, len(log.records)):
        fold = require_report("reconcile", Question()).begin(Question())
        for index in (4, 7):
            fold.see(index, Record(kind="audit.query", ts_us=5), b"")
        answer = fold.answer(Part(4, 7, whole=False, size=size))
        assert answer.findings == ()
        assert any("export to the end" in text for text in answer.limits)


def test_budgets_are_not_replayed_over_what_is_no_longer_kept() -> None:
    left, noon = {"privacy_budget": "patients"}, 43_200_000_000
    told = [Record(kind="log.opened", ts_us=noon), Record(kind="policy.change", ts_us=noon, policy_digest="p1")]
    for number in range(4):
        fields = {"eps_micro": 10, "budget_after_micro": 90 - 10 * number, "detail": left}
        told.append(Record(kind="inference.authorized", id=f"g{number}", ts_us=noon + number, **fields))  # type: ignore[arg-type]
    for missing in ((), (3,)):
        fold = require_report("budget", Question()).begin(Question())
        for index, record in enumerate(told):
            if index not in missing:
                fold.see(index, record, b"")
        assert fold.answer(Part(0, 5, whole=True)).findings == ()
    assert ask("budget", [*told[:3], *told[4:]]).findings, "without a gap in the indices it is a contradiction"


# Questions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("reconcile", {"tenant": "a"}),
        ("in-force", {"from_us": 1}),
        ("access", {"first": 0}),
        ("access", {"from_us": 5, "to_us": 5}),
        ("completeness", {"first": 5, "last": 4}),
        ("access", {"tenant": "x" * 1000}),
        ("access", {"actor": "a\0"}),
        ("in-force", {"at_us": -1}),
        ("no-such", {}),
    ],
)
def test_what_a_report_would_ignore_is_refused(name: str, asked: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        require_report(name, Question(**asked))


@pytest.mark.parametrize("name", ["reconcile", "completeness"])
def test_a_range_that_nobody_asked_for_says_from_where_to_where_it_is(name: str) -> None:
    def limits(question: Question, first: int, last: int) -> str:
        fold = require_report(name, question).begin(question)
        for index in range(first, last + 1):
            record = Record(kind="log.opened", ts_us=index + 1)
            fold.see(index, record, b"")
        return " / ".join(fold.answer(Part(first, last, whole=True, size=20)).limits)

    assert "it begins at record 5: of records 0 to 4 this says nothing" in limits(Question(), 5, 19)
    assert "it ends at record 7: of records 8 to 19 this says nothing" in limits(Question(), 5, 7)
    for question, first, last in ((Question(), 0, 19), (Question(first=5, last=7), 5, 7)):
        assert "says nothing" not in limits(question, first, last)


def test_the_budget_report_says_when_a_budget_first_refused() -> None:
    fields: dict[str, Any] = {"kind": "budget.exhausted", "tenant": "a", "actor": "x", "model": "m"}
    shown = [
        Record(ts_us=5, detail={"budget": "b", "renews_us": "90"}, **fields),
        Record(ts_us=6, detail={"budget": "forever", "renews_us": "0"}, **fields),
        Record(ts_us=7, detail={"budget": "c", "renews_us": "-1e9"}, **(fields | {"tenant": "other"})),
    ]
    expected = [(0, 5, "b", "a", "x", "m", 90), (1, 6, "forever", "a", "x", "m", None)]
    assert rows(ask("budget", shown, Question(tenant="a")), "first refused in its window") == expected
    assert len(rows(ask("budget", shown, Question()), "first refused in its window")) == 3


def test_the_budget_report_says_what_was_granted() -> None:
    detail = {"budget": "b", "window": "day", "requests": "10", "units": "5", "by": "uid:7", "caller": "one"}
    shown = [Record(kind="budget.grant", ts_us=5, tenant="a", policy_digest="d", detail=detail)]
    answer = ask("budget", shown)
    expected = (0, 5, "b", "10 requests, 5 units", "day", "a", "one caller", "", "uid:7", "d")
    assert rows(answer, "budgets granted") == [expected]
    assert rows(answer, "granted by policies") == []
