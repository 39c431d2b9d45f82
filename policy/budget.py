"""The budget ledger: how much of each budget is used, kept in the audit log's own database.

Every function runs inside the transaction of the audit writer, so a record and what it cost become durable together or
not at all. A request is counted, and its units held back, BEFORE it is forwarded; what it really cost replaces what was
held when it ends; a crash in between leaves the whole hold spent. One statement checks and takes, so however many
callers there are, none takes what another has taken.

Integers only. A budget's row moves to the next calendar window when its first request arrives there, and never back,
whatever the clock does. Trusts: its caller's transaction, and that grant ids are unique. Never: commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, Text

from policy.budgets import Budget, PrivacyBudget
from policy.epsilon import Ended, EpsilonBook, Left, add_tables
from policy.errors import BudgetExhausted, NoPrivacyBudget, PolicyError, PrivacyBudgetExhausted
from policy.limits import MAX_AMOUNT
from policy.statements import Statement
from policy.windows import window_of

__all__ = [
    "BudgetBook",
    "BudgetExhausted",
    "Ended",
    "Left",
    "NoPrivacyBudget",
    "PrivacyBudgetExhausted",
    "Reserved",
    "window_of",
]

_TABLES = MetaData()
_Big = BigInteger().with_variant(Integer(), "sqlite")

Table(
    "budget_use",
    _TABLES,
    Column("budget", Text, primary_key=True),
    Column("period", Text, primary_key=True),  # another window for the same budget starts from zero
    Column("starts_us", _Big, nullable=False),
    Column("requests_used", _Big, nullable=False),
    Column("units_used", _Big, nullable=False),
    Column("units_held", _Big, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
Table(
    "budget_hold",
    _TABLES,
    Column("grant_id", Text, primary_key=True),
    Column("budget", Text, primary_key=True),
    Column("period", Text, nullable=False),
    Column("starts_us", _Big, nullable=False),
    Column("units", _Big, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

add_tables(_TABLES)

# The same text for SQLite 3.35 and PostgreSQL. No row comes back exactly if the budget has too little left.
_TAKE = Statement("""
    INSERT INTO budget_use AS ledger (budget, period, starts_us, requests_used, units_used, units_held)
    VALUES (:budget, :period, :starts_us, 1, 0, :hold)
    ON CONFLICT (budget, period) DO UPDATE SET
        requests_used = 1 + CASE WHEN ledger.starts_us < excluded.starts_us THEN 0 ELSE ledger.requests_used END,
        units_used = CASE WHEN ledger.starts_us < excluded.starts_us THEN 0 ELSE ledger.units_used END,
        units_held = :hold + CASE WHEN ledger.starts_us < excluded.starts_us THEN 0 ELSE ledger.units_held END,
        starts_us = CASE WHEN ledger.starts_us < excluded.starts_us THEN excluded.starts_us ELSE ledger.starts_us END
    WHERE ledger.starts_us < excluded.starts_us
       OR (ledger.requests_used < :requests AND ledger.units_used + ledger.units_held <= :units - :hold)
    RETURNING starts_us, requests_used, units_used + units_held
""")
_BEGAN = Statement("SELECT starts_us FROM budget_use WHERE budget = :budget AND period = :period")
_GIVE_BACK = Statement("""
    UPDATE budget_use SET requests_used = requests_used - 1, units_held = units_held - :hold
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
""")
_HOLD = Statement("""
    INSERT INTO budget_hold (grant_id, budget, period, starts_us, units)
    VALUES (:grant, :budget, :period, :starts_us, :hold)
""")
_RELEASE = Statement("DELETE FROM budget_hold WHERE grant_id = :grant RETURNING budget, period, starts_us, units")
_CHARGE = Statement(f"""
    UPDATE budget_use SET
        units_held = units_held - :hold,
        units_used = CASE WHEN units_used > {MAX_AMOUNT} - :units THEN {MAX_AMOUNT} ELSE units_used + :units END
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
""")  # noqa: S608 - the only insertion is our own integer constant


@dataclass(frozen=True)
class Reserved:
    """What a reservation leaves: such requests still possible under the tightest budget of requests and units, and the
    privacy budget that has least. None where none applies."""

    requests: int | None
    privacy: Left | None


class BudgetBook:
    """The budgets in force, and their use. Holds no state of its own: the tables do."""

    tables: MetaData = _TABLES

    def __init__(self, budgets: Sequence[Budget], privacy: Sequence[PrivacyBudget] = ()) -> None:
        self._by_tenant: dict[str, list[Budget]] = {}
        for budget in budgets:
            self._by_tenant.setdefault(budget.tenant, []).append(budget)
        self._epsilon = EpsilonBook(privacy)

    def reserve(
        self,
        conn: Connection,
        *,
        grant: str,
        tenant: str,
        subject: str,
        model: str,
        eps_micro: int = 0,
        now_us: int,
    ) -> Reserved:
        """Count one request against every budget that applies to it, or against none.

        `eps_micro` is the most epsilon that its noised answers may spend; 0 means that they need no noise. Raises
        BudgetExhausted (PrivacyBudgetExhausted), naming the budget and when it renews, or NoPrivacyBudget; then nothing
        is counted, so the caller may go on in the same transaction (and record the denial).
        """
        taken: list[dict[str, Any]] = []
        left: int | None = None
        privacy: Left | None = None
        try:
            for budget in self._by_tenant.get(tenant, ()):
                if budget.applies(tenant=tenant, subject=subject, model=model):
                    entry, remaining = _take(conn, budget, grant=grant, now_us=now_us)
                    taken.append(entry)
                    left = remaining if left is None else min(left, remaining)
            if eps_micro:
                privacy = self._epsilon.hold(
                    conn, grant=grant, tenant=tenant, subject=subject, model=model, micro=eps_micro, now_us=now_us
                )
        except PolicyError:
            if taken:
                _GIVE_BACK.run(conn, taken)
            raise
        holds = [entry for entry in taken if entry["hold"]]
        if holds:
            _HOLD.run(conn, holds)
        return Reserved(left, privacy)

    def settle(
        self, conn: Connection, *, grant: str, units: int, eps_micro: int | None = None, now_us: int
    ) -> Ended | None:
        """Replace what was held for `grant` by what it cost. Doing so again, or for no hold, changes nothing.

        The window that was charged at the reservation is the one that pays, even if `now_us` lies in a later one: a new
        window starts unburdened. Units above the hold are charged in full, and the budget may then stand below zero by
        that much: `units_per_request` must be what one request may cost at most. Epsilon above the hold raises.
        `eps_micro` is None for a request that nothing was held for, which saves looking. Returns what was spent of
        privacy budgets, if anything was held of one.
        """
        if not 0 <= units <= MAX_AMOUNT or now_us < 0:
            raise PolicyError("units and times are whole numbers of at least 0", code="budget-amount")
        if held := _release(conn, grant):
            _CHARGE.run(conn, [{**entry, "units": units} for entry in held])
        return None if eps_micro is None else self._epsilon.settle(conn, grant=grant, micro=eps_micro)

    def abandon(self, conn: Connection, *, grant: str) -> Ended | None:
        """The request ended without anybody knowing what it cost: all that was held counts as spent."""
        if held := _release(conn, grant):
            _CHARGE.run(conn, [{**entry, "units": entry["hold"]} for entry in held])
        return self._epsilon.settle(conn, grant=grant, micro=None)

    def balances(self, conn: Connection) -> dict[str, tuple[int, int]]:
        """What is left of each privacy budget that was ever used (millionths), and since when its window runs."""
        return self._epsilon.balances(conn)


def _take(conn: Connection, budget: Budget, *, grant: str, now_us: int) -> tuple[dict[str, Any], int]:
    """Take one request and its hold from one budget, or raise BudgetExhausted; nothing has changed then."""
    starts_us, renews_us = window_of(budget.window, now_us)
    hold = 0 if budget.units is None else budget.units_per_request
    requests = MAX_AMOUNT if budget.requests is None else budget.requests
    units = MAX_AMOUNT if budget.units is None else budget.units
    entry = {"grant": grant, "budget": budget.name, "period": budget.window.value, "starts_us": starts_us, "hold": hold}
    row = None
    if requests >= 1 and units >= hold:  # the statement checks a row that exists; a first request must fit too
        row = _TAKE.row(conn, {**entry, "requests": requests, "units": units})
    if row is None:
        began = _BEGAN.row(conn, entry)
        began_us = began[0] if began else 0
        if began_us > starts_us:  # the clock has gone back: what counts is still the later window, until it ends
            renews_us = window_of(budget.window, began_us)[1]
        raise BudgetExhausted(budget.name, renews_us=renews_us)
    entry["starts_us"], requests_used, units_taken = row
    remaining = requests - requests_used
    if hold:
        remaining = min(remaining, (units - units_taken) // hold)
    return entry, remaining


def _release(conn: Connection, grant: str) -> list[dict[str, Any]]:
    rows = _RELEASE.rows(conn, {"grant": grant})
    return [{"budget": row[0], "period": row[1], "starts_us": row[2], "hold": row[3]} for row in rows]
