"""The ledger of epsilon: what noised answers spent about each population, in the audit log's own database.

A sibling of `policy.budget`, which calls it inside the same transaction. The most that a request may spend is held
before it is forwarded; what its signed completion says it spent replaces that when it ends; where nobody knows, all of
it counts as spent. So what was spent is never less than what left, whatever crashed.

Integers only, in millionths. Trusts: its caller's transaction, and that grant ids are unique. Never: commits; gives
back more than was held; lets a window begin anew because a clock went back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, Text

from policy.budgets import PrivacyBudget
from policy.errors import NoPrivacyBudget, PolicyError, PrivacyBudgetExhausted, PrivacyBudgetHeld
from policy.limits import MAX_AMOUNT
from policy.statements import Statement
from policy.windows import window_of

_Big = BigInteger().with_variant(Integer(), "sqlite")


def add_tables(metadata: MetaData) -> None:
    """The ledger's tables, beside those of request budgets."""
    Table(
        "privacy_use",
        metadata,
        Column("budget", Text, primary_key=True),
        Column("period", Text, primary_key=True),  # another window for the same budget starts from zero
        Column("starts_us", _Big, nullable=False),
        Column("spent_micro", _Big, nullable=False),
        Column("held_micro", _Big, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    Table(
        "privacy_hold",
        metadata,
        Column("grant_id", Text, primary_key=True),
        Column("budget", Text, primary_key=True),
        Column("period", Text, nullable=False),
        Column("starts_us", _Big, nullable=False),
        Column("held_micro", _Big, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


# The same text for SQLite 3.35 and PostgreSQL. No row comes back exactly if the budget has too little left.
_TAKE = Statement("""
    INSERT INTO privacy_use AS ledger (budget, period, starts_us, spent_micro, held_micro)
    VALUES (:budget, :period, :starts_us, 0, :hold)
    ON CONFLICT (budget, period) DO UPDATE SET
        spent_micro = CASE WHEN ledger.starts_us < excluded.starts_us THEN 0 ELSE ledger.spent_micro END,
        held_micro = :hold + CASE WHEN ledger.starts_us < excluded.starts_us THEN 0 ELSE ledger.held_micro END,
        starts_us = CASE WHEN ledger.starts_us < excluded.starts_us THEN excluded.starts_us ELSE ledger.starts_us END
    WHERE ledger.starts_us < excluded.starts_us OR ledger.spent_micro + ledger.held_micro <= :total - :hold
    RETURNING starts_us, spent_micro + held_micro
""")
_SPENT = Statement("SELECT spent_micro, starts_us FROM privacy_use WHERE budget = :budget AND period = :period")
_TAKEN = Statement(
    "SELECT budget, period, starts_us, spent_micro + held_micro FROM privacy_use ORDER BY budget, period"
)
_HOLD = Statement("""
    INSERT INTO privacy_hold (grant_id, budget, period, starts_us, held_micro)
    VALUES (:grant, :budget, :period, :starts_us, :hold)
""")
_GIVE_BACK = Statement("""
    UPDATE privacy_use SET held_micro = held_micro - :hold
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
""")
_RELEASE = Statement("DELETE FROM privacy_hold WHERE grant_id = :grant RETURNING budget, period, starts_us, held_micro")
_CHARGE = Statement("""
    UPDATE privacy_use SET held_micro = held_micro - :hold, spent_micro = spent_micro + :spent
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
    RETURNING spent_micro + held_micro
""")


@dataclass(frozen=True)
class Left:
    """What one request left in the privacy budget that has least: its name, and millionths of epsilon."""

    budget: str
    micro: int


@dataclass(frozen=True)
class Ended:
    """What one request spent in all, and what that left; `left` is None if none of its budgets is in force any more."""

    spent_micro: int
    left: Left | None


class EpsilonBook:
    """The privacy budgets in force, and their use. Holds no state of its own: the tables do."""

    def __init__(self, budgets: Sequence[PrivacyBudget]) -> None:
        self._by_model: dict[str, list[PrivacyBudget]] = {}
        self._totals = {(budget.name, budget.window.value): budget.epsilon_micro for budget in budgets}
        for budget in budgets:
            for model in budget.models:
                self._by_model.setdefault(model, []).append(budget)

    def hold(
        self, conn: Connection, *, grant: str, tenant: str, subject: str, model: str, micro: int, now_us: int
    ) -> Left:
        """Hold `micro` of every budget that applies, or of none.

        Raises PrivacyBudgetExhausted (PrivacyBudgetHeld if only what others hold is in the way), naming the budget, or
        NoPrivacyBudget; then nothing is held.
        """
        if not 0 < micro <= MAX_AMOUNT:
            raise PolicyError("what a noised request may spend is a whole number above 0", code="budget-amount")
        applying = [
            budget
            for budget in self._by_model.get(model, ())
            if budget.applies(tenant=tenant, subject=subject, model=model)
        ]
        if all(budget.is_share for budget in applying):
            raise NoPrivacyBudget(model)
        taken: list[dict[str, Any]] = []
        least: Left | None = None
        for budget in applying:
            starts_us, renews_us = window_of(budget.window, now_us)
            entry = {
                "grant": grant,
                "budget": budget.name,
                "period": budget.window.value,
                "starts_us": starts_us,
                "hold": micro,
            }
            total = budget.epsilon_micro
            row = _TAKE.row(conn, {**entry, "total": total}) if micro <= total else None
            if row is None:
                if taken:
                    _GIVE_BACK.run(conn, taken)
                spent, began_us = _SPENT.row(conn, entry) or (0, 0)
                if began_us > starts_us:  # the clock has gone back: what counts is still the later window
                    renews_us = window_of(budget.window, began_us)[1]
                refusal = PrivacyBudgetHeld if spent + micro <= total else PrivacyBudgetExhausted
                raise refusal(budget.name, renews_us=renews_us)
            entry["starts_us"] = row[0]
            taken.append(entry)
            least = _least(least, Left(budget.name, total - row[1]))
        _HOLD.run(conn, taken)
        assert least is not None
        return least

    def settle(self, conn: Connection, *, grant: str, micro: int | None) -> Ended | None:
        """Replace what was held for `grant` by what it spent: `micro`, or all of it for None. None if nothing was held.

        The window that was charged at the reservation is the one that pays. Raises PolicyError for more than was held:
        what was promised to the budget would not have been kept.
        """
        ended: Ended | None = None
        for name, period, starts_us, hold in _RELEASE.rows(conn, {"grant": grant}):
            spent = hold if micro is None else micro
            if not 0 <= spent <= hold:
                raise PolicyError("a request spent more epsilon than was held for it", code="budget-amount")
            entry = {"budget": name, "period": period, "starts_us": starts_us, "hold": hold, "spent": spent}
            charged = _CHARGE.row(conn, entry)
            total = self._totals.get((name, period))
            left = ended.left if ended else None
            if charged is not None and total is not None:
                left = _least(left, Left(name, max(0, total - charged[0])))
            ended = Ended(spent, left)
        if ended is None and micro:
            raise PolicyError("a request spent epsilon, and none was held for it", code="budget-amount")
        return ended

    def balances(self, conn: Connection) -> dict[str, tuple[int, int]]:
        """What is left of each budget of which something was ever taken (millionths), and since when the window runs
        that it was taken in (microseconds)."""
        found = {}
        for name, period, starts_us, taken in _TAKEN.rows(conn, {}):
            total = self._totals.get((name, period))
            if total is not None:
                found[name] = (max(0, total - taken), starts_us)
        return found


def _least(one: Left | None, other: Left) -> Left:
    return other if one is None or other.micro < one.micro else one
