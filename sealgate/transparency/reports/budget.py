"""What privacy and use cost: spent by whom, left of which budget, under which policy, and whether it adds up.

    spent        units and epsilon of ends, by tenant, model and purpose: exact, whoever paid for it
    budgets      what records say is left of each privacy budget, replayed (sealgate.transparency.budget_replay)
    refusals     requests that found a budget exhausted, by budget
    exhausted    when a budget first refused in its window, by budget and caller (`budget.exhausted`)
    grants       every policy that came into force, and each budget that it grants anew or otherwise (`budget.grant`);
                 of shards before, what this one says again: the policy and the grants that were in force when it began

Trusts: the records. Never: knows the whole of a budget; the policy of that digest does.
"""

from __future__ import annotations

from sealgate.limits import MAX_REPORT_GROUPS
from sealgate.transparency.budget_replay import BudgetReplay
from sealgate.transparency.carried import restated
from sealgate.transparency.checks import Range
from sealgate.transparency.record import ENDS, Record
from sealgate.transparency.reports.access import Counts
from sealgate.transparency.reports.counting import Counted, Tallies
from sealgate.transparency.reports.form import Answer, Cell, Column, Part, Table
from sealgate.transparency.reports.gaps import Gaps
from sealgate.transparency.reports.question import Question

_LEAST = (
    "a record names only the budget with least left: what others have left may stand in no record; "
    "`sealgate budget show` knows"
)


GRANTS = ("policy.change", "budget.grant")
"""The kinds that say who was granted how much."""


class Budget(Counts):
    """Spending can be counted in whole groups (`take`); the replay needs every record of a range (`replay`)."""

    kinds = tuple(sorted(ENDS))

    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self._spent = Tallies(lambda one: (one.tenant, one.model, one.purpose))
        self._replay = BudgetReplay()
        self._gaps = Gaps()
        self._refused: dict[str, tuple[int, int]] = {}  # budget: how often, newest
        self._exhausted: list[tuple[Cell, ...]] = []
        self._more_exhausted = 0
        self._budgets_granted: list[tuple[int, Record]] = []
        self._more_granted = 0
        self._policies: list[tuple[int, Record]] = []
        self._left_out = 0

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        super().see(index, record, leaf)
        self.replay(index, record, leaf)

    def replay(self, index: int, record: Record, leaf: bytes) -> None:
        """Show a record to everything but the sums of spending."""
        for missing in self._gaps.before(index):
            self._replay.miss(missing, b"")
        self._replay.see(index, record, leaf)
        budget = record.detail.get("budget", "")
        if record.kind == "inference.denied" and budget:
            count, newest = self._refused.get(budget, (0, 0))
            if budget in self._refused or len(self._refused) < MAX_REPORT_GROUPS:
                self._refused[budget] = (count + 1, max(newest, record.ts_us))
        elif restated(record).kind in GRANTS:
            self.grant(index, restated(record))
        elif record.kind == "budget.exhausted" and self._question.matches(record):
            self._exhaust(index, record)

    def _exhaust(self, index: int, record: Record) -> None:
        if len(self._exhausted) >= MAX_REPORT_GROUPS:
            self._more_exhausted += 1
            return
        renews = record.detail.get("renews_us", "")
        renews_us = int(renews) if renews.isdecimal() and 0 < len(renews) <= 16 and renews != "0" else None
        who = (record.tenant, record.actor, record.model)
        self._exhausted.append((index, record.ts_us, record.detail.get("budget", ""), *who, renews_us))

    def grant(self, index: int, record: Record) -> None:
        """Show one of GRANTS, or what a shard says again of one."""
        if record.kind == "budget.grant":
            if len(self._budgets_granted) < MAX_REPORT_GROUPS:
                self._budgets_granted.append((index, record))
            else:
                self._more_granted += 1
        elif len(self._policies) < MAX_REPORT_GROUPS:
            self._policies.append((index, record))
        else:
            self._left_out += 1

    def _add(self, one: Counted) -> None:
        self._spent.take(one)

    def answer(self, part: Part) -> Answer:
        verdict = self._replay.verdict(Range(part.first, part.last, part.last + 1))
        limits = [_LEAST]
        if verdict.status == "skipped":
            limits.append(f"not decided: {verdict.detail}")
        return Answer(
            (self._spending(), self._budgets(), self._refusals(), self._exhaustions(), self._grants(), self._granted()),
            findings=(f"{self._replay.name}: {verdict.detail}",) if verdict.status == "failed" else (),
            limits=tuple(limits),
        )

    def _spending(self) -> Table:
        return Table(
            title="spent",
            columns=(
                *(Column(name) for name in ("tenant", "model", "purpose")),
                *(Column(name, "number") for name in ("requests", "units")),
                Column("epsilon", "epsilon"),
            ),
            rows=tuple((*key, row.count, row.units, row.eps_micro) for key, row in self._spent.rows()),
            left_out=self._spent.left_out,
        )

    def _budgets(self) -> Table:
        held: dict[str, int] = {}
        for name, micro in self._replay.held.values():
            held[name] = held.get(name, 0) + micro
        rows = tuple(
            (name, book.requests, book.renewals, book.spent, held.get(name, 0), book.left, book.index)
            for name, book in sorted(self._replay.books.items())
        )
        columns = (
            Column("privacy budget"),
            Column("requests that name it", "number"),
            Column("renewals", "number"),
            *(Column(name, "epsilon") for name in ("spent by these", "held", "left")),
            Column("left at record", "number"),
        )
        return Table(title="privacy budgets", columns=columns, rows=rows[:MAX_REPORT_GROUPS])

    def _refusals(self) -> Table:
        columns = (Column("budget"), Column("refused", "number"), Column("last (UTC)", "time"))
        rows = tuple((name, count, newest) for name, (count, newest) in sorted(self._refused.items()))
        return Table(title="exhausted", columns=columns, rows=rows)

    def _exhaustions(self) -> Table:
        columns = (
            Column("record", "number"),
            Column("time (UTC)", "time"),
            *(Column(name) for name in ("budget", "tenant", "actor", "model")),
            Column("renews (UTC)", "time"),
        )
        rows = tuple(self._exhausted)
        return Table(title="first refused in its window", columns=columns, rows=rows, left_out=self._more_exhausted)

    def _grants(self) -> Table:
        columns = (
            Column("record", "number"),
            Column("time (UTC)", "time"),
            *(Column(name) for name in ("policy", "version", "reason", "by", "digest")),
        )
        rows = tuple(_granted(index, record) for index, record in self._policies)
        return Table(title="granted by policies", columns=columns, rows=rows, left_out=self._left_out)

    def _granted(self) -> Table:
        columns = (
            Column("record", "number"),
            Column("time (UTC)", "time"),
            *(Column(name) for name in ("budget", "grants", "window", "tenant", "of", "models", "by", "policy digest")),
        )
        rows = tuple(_budget_granted(index, record) for index, record in self._budgets_granted)
        return Table(title="budgets granted", columns=columns, rows=rows, left_out=self._more_granted)


_AMOUNTS = ("requests", "units", "epsilon")


def _budget_granted(index: int, grant: Record) -> tuple[Cell, ...]:
    detail = grant.detail
    amount = ", ".join(f"{detail[name]} {name}" for name in _AMOUNTS if name in detail)
    whose = "one caller" if detail.get("caller") else detail.get("population", "")
    words = (detail.get("budget", ""), amount, detail.get("window", ""), grant.tenant, whose, detail.get("models", ""))
    return (index, grant.ts_us, *words, detail.get("by", ""), grant.policy_digest)


def _granted(index: int, policy: Record) -> tuple[Cell, ...]:
    name, version, by = (policy.detail.get(key, "") for key in ("name", "version", "by"))
    return (index, policy.ts_us, name, version, policy.reason, by, policy.policy_digest)
