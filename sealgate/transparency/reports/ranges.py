"""Reports on a range of records, every one of which must be seen: that is what a Merkle log can prove complete.

    reconcile      each authorized request has exactly one end, workers signed it, their counters have no gap
    completeness   every index of the range is there, the times rise, the writer's stops were in order

Trusts: the order in which records are shown. Never: takes a filter; half of a range reconciles with nothing.
"""

from __future__ import annotations

from sealgate.transparency.budget_replay import BudgetReplay
from sealgate.transparency.checks import Check, Counters, Problems, Range, Reconcile, Signatures
from sealgate.transparency.pruned import Pruned
from sealgate.transparency.record import Record
from sealgate.transparency.reports.form import Answer, Column, Part, Table
from sealgate.transparency.reports.gaps import Gaps
from sealgate.transparency.reports.question import Question


class Reconciled:
    """The verifier's own checks of what records say together, as a report."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._checks: list[Check] = []
        self._gaps = Gaps()
        self._gone = Pruned()
        self._budgets = BudgetReplay()
        self._first = -1

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if not self._checks:
            self._first, gone = index, self._gone
            self._checks = [Reconcile(Range(index, index, index + 1), gone), Signatures(gone), Counters(gone)]
            self._checks += [self._budgets, gone]
        for missing in self._gaps.before(index):
            self._gone.miss(missing, b"")
            self._budgets.miss(missing, b"")
        for check in self._checks:
            check.see(index, record, leaf)

    def answer(self, part: Part) -> Answer:
        # What is missing from a part may be announced behind it, as far as anybody knows.
        seen = Range(max(self._first, part.first), part.last, part.size or part.last + 2)
        told = [check for check in self._checks if check is not self._gone or self._gone.count]
        verdicts = [(check.name, check.verdict(seen)) for check in told]
        table = Table(
            title="what the records say together",
            columns=(Column("check"), Column("result"), Column("detail")),
            rows=tuple((name, verdict.status, verdict.detail) for name, verdict in verdicts),
        )
        undecided = [f"not decided: {name}: {one.detail}" for name, one in verdicts if one.status == "skipped"]
        return Answer(
            (table,),
            findings=tuple(f"{name}: {verdict.detail}" for name, verdict in verdicts if verdict.status == "failed"),
            limits=(*_from_where(self._question, part), *undecided),
        )


class Completeness:
    """That nothing is missing between two indexes, and what it is that is there."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._kinds: dict[str, int] = {}
        self._problems = Problems()
        self._next = -1
        self._closed = True  # the record before was `log.closed`, or none was seen
        self._cuts = 0
        self._newest_us = 0
        self._earliest_us: int | None = None
        self._back = 0
        self._back_us = 0

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if index < self._next:
            self._problems.add(f"after record {self._next - 1} comes record {index}")
        self._next = index + 1
        self._kinds[record.kind] = self._kinds.get(record.kind, 0) + 1
        if record.kind == "log.opened" and not self._closed:
            self._cuts += 1
        self._closed = record.kind == "log.closed"
        if record.ts_us < self._newest_us:
            self._back += 1
            self._back_us = max(self._back_us, self._newest_us - record.ts_us)
        self._newest_us = max(self._newest_us, record.ts_us)
        self._earliest_us = record.ts_us if self._earliest_us is None else min(self._earliest_us, record.ts_us)

    def answer(self, part: Part) -> Answer:
        count = sum(self._kinds.values())
        missing = part.last - part.first + 1 - count
        numbers = (
            ("records", count),
            ("records that are no longer kept", missing),
            ("times that went back", self._back),
            ("microseconds back at most", self._back_us),
            ("starts after a stop without order (a crash, a power cut)", self._cuts),
        )
        times = (("earliest", self._earliest_us), ("newest", self._newest_us or None))
        tables = (
            Table(title="the range", columns=(Column("fact"), Column("value", "number")), rows=numbers),
            Table(title="its time", columns=(Column("fact"), Column("time (UTC)", "time")), rows=times),
            Table(
                title="its records",
                columns=(Column("kind"), Column("records", "number")),
                rows=tuple(sorted(self._kinds.items())),
            ),
        )
        found = (self._problems.verdict().detail,) if self._problems.count else ()
        limits = [
            *_from_where(self._question, part),
            "what was never written is shown by workers' counters only: see the report 'reconcile'",
        ]
        if missing:
            limits.append("whether it was announced which records are no longer kept, `sealgate audit verify` checks")
        return Answer(tables, findings=found, limits=tuple(limits))


def _from_where(question: Question, part: Part) -> list[str]:
    """What was not looked at though nobody said to leave it out: the older part of a log that is more than one answer
    takes, or what a bundle does not hold."""
    said = []
    if question.first is None and part.first > 0:
        said.append(f"it begins at record {part.first}: of records 0 to {part.first - 1} this says nothing")
    if question.last is None and part.last < part.size - 1:
        said.append(f"it ends at record {part.last}: of records {part.last + 1} to {part.size - 1} this says nothing")
    return said
