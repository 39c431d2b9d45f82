"""Replayed budgets: what honest ledgers say always adds up, and one that was meddled with does not."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.transparency.budget_replay import BudgetReplay
from sealgate.transparency.checks import Range
from sealgate.transparency.record import Record

DAY = 86_400_000_000
ROW = 500_000


class Ledger:
    """An honest host in a few lines, with its own idea of budgets: day and forever, over all models or one."""

    def __init__(self) -> None:
        self.records: list[Record] = [
            Record(kind="log.opened"),
            Record(kind="policy.change", policy_digest="p1"),
        ]
        self.totals = {"daily": 40 * ROW, "ever": 90 * ROW, "narrow": 30 * ROW}
        self.used = dict.fromkeys(self.totals, 0)
        self.window = 0
        self.open: dict[str, tuple[int, list[str], int]] = {}
        self.now = DAY * 100 + DAY // 24

    def pays(self, model: str) -> list[str]:
        return ["daily", "ever", "narrow"] if model == "n" else ["daily", "ever"]

    def least(self, names: list[str]) -> tuple[int, str]:
        return min((max(0, self.totals[name] - self.used[name]), name) for name in names)

    def authorize(self, model: str, rows: int) -> None:
        micro, names = rows * ROW, self.pays(model)
        if self.window != self.now // DAY:
            self.window, self.used["daily"] = self.now // DAY, 0
        if any(self.used[name] + micro > self.totals[name] for name in names):
            return
        for name in names:
            self.used[name] += micro
        left, name = self.least(names)
        identifier = f"grant-{len(self.records)}"
        self.open[identifier] = (micro, names, self.window)
        self.say(kind="inference.authorized", id=identifier, eps_micro=micro, left=left, name=name, model=model)

    def end(self, spent_rows: int | None) -> None:
        if not self.open:
            return
        identifier = next(iter(self.open))
        held, names, window = self.open.pop(identifier)
        spent = held if spent_rows is None else min(held, spent_rows * ROW)
        current = [name for name in names if name != "daily" or window == self.window]
        for name in current:
            self.used[name] -= held - spent
        left, name = self.least(current)
        signed = {} if spent_rows is None else {"runtime_sig": "signed"}
        kind = "inference.aborted" if spent_rows is None else "inference.completed"
        self.say(kind=kind, grant=identifier, eps_micro=spent, left=left, name=name, **signed)

    def say(self, *, left: int, name: str, **fields: object) -> None:
        self.records.append(
            Record(ts_us=self.now, budget_after_micro=left, detail={"privacy_budget": name}, **fields)  # type: ignore[arg-type]
        )
        self.now += 1_000_000


def replay(records: list[Record], first: int = 0) -> BudgetReplay:
    check = BudgetReplay()
    for index, record in enumerate(records, first):
        check.see(index, record, b"")
    return check


def status(records: list[Record], first: int = 0) -> str:
    return replay(records, first).verdict(Range(first, first + len(records) - 1, first + len(records))).status


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("mn"), st.integers(1, 4)),
        st.tuples(st.just("end"), st.none() | st.integers(0, 4)),
        st.tuples(st.just("sleep"), st.integers(1, 3)),
    ),
    max_size=40,
)


def played(actions: list[tuple[object, ...]]) -> Ledger:
    ledger = Ledger()
    for name, *values in actions:
        if name == "sleep":
            ledger.now += values[0] * DAY // 2  # type: ignore[operator]
        else:
            {"ask": ledger.authorize, "end": ledger.end}[str(name)](*values)  # type: ignore[operator]
    return ledger


@settings(max_examples=150, deadline=None)
@given(actions=steps, cut=st.integers(0, 40))
def test_an_honest_ledger_always_adds_up(actions: list[tuple[object, ...]], cut: int) -> None:
    records = played(actions).records
    assert status(records) == "ok", replay(records).problems.found
    assert status(records[cut:], cut) in ("ok", "skipped")


@settings(max_examples=150, deadline=None)
@given(asked=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=2, max_size=12), data=st.data())
def test_one_budget_that_was_meddled_with_does_not(asked: list[tuple[int, int]], data: st.DataObject) -> None:
    ledger = Ledger()
    ledger.totals = {"daily": 40 * ROW, "ever": 10**12}
    for rows, spent in asked:
        ledger.authorize("m", rows)
        ledger.end(spent)
    records = ledger.records
    assert status(records) == "ok"
    at = data.draw(st.integers(3, len(records) - 1))
    by = data.draw(st.sampled_from([-ROW, -1, 1, ROW]))
    changed = msgspec.structs.replace(records[at], budget_after_micro=records[at].budget_after_micro + by)
    assert status([*records[:at], changed, *records[at + 1 :]]) == "failed"


def _spends_more(ledger: Ledger) -> None:
    ledger.end(2)
    ledger.records[-1] = msgspec.structs.replace(ledger.records[-1], eps_micro=3 * ROW)


def _gives_back_unsigned(ledger: Ledger) -> None:
    ledger.end(1)
    ledger.records[-1] = msgspec.structs.replace(ledger.records[-1], runtime_sig="")


def _names_no_budget(ledger: Ledger) -> None:
    ledger.records[-1] = msgspec.structs.replace(ledger.records[-1], detail={})


def _renews_at_noon(ledger: Ledger) -> None:
    ledger.now += 3600 * 1_000_000
    ledger.used["daily"] = 0
    ledger.authorize("m", 1)


def _renews_to_more(ledger: Ledger) -> None:
    for total in (40, 50):
        ledger.now += DAY
        ledger.totals["daily"] = total * ROW
        ledger.authorize("m", 1)


@pytest.mark.parametrize(
    ("meddle", "says"),
    [
        (_spends_more, "where 1000000 were held"),
        (_gives_back_unsigned, "no worker signed"),
        (_names_no_budget, "no privacy budget pays"),
        (_renews_at_noon, "left of budget daily"),
        (_renews_to_more, "before it was"),
    ],
)
def test_each_way_to_spend_more_is_said(meddle: Callable[[Ledger], None], says: str) -> None:
    ledger = Ledger()
    ledger.totals = {"daily": 40 * ROW, "ever": 10**12}
    ledger.authorize("m", 2)
    assert status(ledger.records) == "ok"
    meddle(ledger)
    check = replay(ledger.records)
    assert any(says in text for text in check.problems.found), check.problems.found


def test_only_another_policy_may_change_what_is_left() -> None:
    ledger = Ledger()
    ledger.totals = {"daily": 40 * ROW, "ever": 10**12}
    ledger.authorize("m", 2)
    ledger.totals["daily"] = 60 * ROW
    for digest, expected in (("p2", "ok"), ("p1", "failed")):
        for restart in (False, True):
            records = [*ledger.records]
            records += [Record(kind="log.opened")] if restart else []
            after = 56 * ROW
            ended = Record(
                kind="inference.aborted",
                grant=records[2].id,
                eps_micro=2 * ROW,
                ts_us=ledger.now,
                budget_after_micro=after,
                detail={"privacy_budget": "daily"},
            )
            changed = Record(kind="policy.change", policy_digest=digest, detail={"previous": "p1"})
            records += [ended, changed] if restart else [changed, ended]
            assert status(records) == expected, (digest, restart)
            if restart:  # before the policy is named, nobody can tell
                assert status(records[:-1]) == "skipped"


def test_a_policy_that_allows_less_than_was_spent_leaves_nothing_until_enough_came_back() -> None:
    ledger = Ledger()
    ledger.totals = {"daily": 40 * ROW, "ever": 10**12}
    for _ in range(3):
        ledger.authorize("m", 4)
    ledger.totals["daily"] = 5 * ROW
    ledger.records.append(Record(kind="policy.change", policy_digest="p2", detail={"previous": "p1"}))
    for _ in range(3):
        ledger.end(1)
    assert [record.budget_after_micro for record in ledger.records[-3:]] == [0, 0, 2 * ROW]
    assert status(ledger.records) == "ok", replay(ledger.records).problems.found
