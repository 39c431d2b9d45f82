"""The budget ledger: how much of each budget is used, kept in the audit log's own database.

Every function runs inside the transaction of the audit writer, so a record and what it cost become durable together or
not at all. A request is counted, and its units held back, BEFORE it is forwarded; what it really cost replaces what was
held when it ends; a crash in between leaves the whole hold spent. One statement checks and takes, so however many
callers there are, none takes what another has taken.

Integers only. A budget's row moves to the next calendar window when its first request arrives there, and never back,
whatever the clock does. Trusts: its caller's transaction, and that grant ids are unique. Never: commits.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, Text, text

from policy.budgets import Budget, Window
from policy.errors import BudgetExhausted, PolicyError
from policy.limits import MAX_AMOUNT

__all__ = ["BudgetBook", "BudgetExhausted", "window_of"]

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

# The same text for SQLite 3.35 and PostgreSQL. No row comes back exactly if the budget has too little left.
_TAKE = text("""
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
_GIVE_BACK = text("""
    UPDATE budget_use SET requests_used = requests_used - 1, units_held = units_held - :hold
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
""")
_HOLD = text("""
    INSERT INTO budget_hold (grant_id, budget, period, starts_us, units)
    VALUES (:grant, :budget, :period, :starts_us, :hold)
""")
_RELEASE = text("DELETE FROM budget_hold WHERE grant_id = :grant RETURNING budget, period, starts_us, units")
_CHARGE = text(f"""
    UPDATE budget_use SET
        units_held = units_held - :hold,
        units_used = CASE WHEN units_used > {MAX_AMOUNT} - :units THEN {MAX_AMOUNT} ELSE units_used + :units END
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
""")  # noqa: S608 - the only insertion is our own integer constant


class BudgetBook:
    """The budgets in force, and their use. Holds no state of its own: the tables do."""

    tables: MetaData = _TABLES

    def __init__(self, budgets: Sequence[Budget]) -> None:
        self._by_tenant: dict[str, list[Budget]] = {}
        for budget in budgets:
            self._by_tenant.setdefault(budget.tenant, []).append(budget)

    def reserve(
        self, conn: Connection, *, grant: str, tenant: str, subject: str, model: str, now_us: int
    ) -> int | None:
        """Count one request against every budget that applies to it, or against none.

        Returns how many such requests are still possible under the tightest of them, or None if no budget applies.
        Raises BudgetExhausted, naming the budget and when it renews; then nothing is counted, so the caller may go on
        in the same transaction (and record the denial).
        """
        taken: list[dict[str, Any]] = []
        left: int | None = None
        for budget in self._by_tenant.get(tenant, ()):
            if not budget.applies(tenant=tenant, subject=subject, model=model):
                continue
            starts_us, renews_us = window_of(budget.window, now_us)
            entry, remaining = _take(conn, budget, grant=grant, starts_us=starts_us)
            if entry is None:
                if taken:
                    conn.execute(_GIVE_BACK, taken)
                raise BudgetExhausted(budget.name, renews_us=renews_us)
            taken.append(entry)
            left = remaining if left is None else min(left, remaining)
        holds = [entry for entry in taken if entry["hold"]]
        if holds:
            conn.execute(_HOLD, holds)
        return left

    def settle(self, conn: Connection, *, grant: str, units: int, now_us: int) -> None:
        """Replace what was held for `grant` by what it cost. Doing so again, or for no hold, changes nothing.

        The window that was charged at the reservation is the one that pays, even if `now_us` lies in a later one: a new
        window starts unburdened. Units above the hold are charged in full, and the budget may then stand below zero by
        that much: `units_per_request` must be what one request may cost at most.
        """
        if not 0 <= units <= MAX_AMOUNT or now_us < 0:
            raise PolicyError("units and times are whole numbers of at least 0", code="budget-amount")
        for entry in _release(conn, grant):
            conn.execute(_CHARGE, {**entry, "units": units})

    def abandon(self, conn: Connection, *, grant: str) -> None:
        """The request ended without anybody knowing what it cost: all that was held counts as spent."""
        for entry in _release(conn, grant):
            conn.execute(_CHARGE, {**entry, "units": entry["hold"]})


def window_of(window: Window, now_us: int) -> tuple[int, int]:
    """Start and end, in microseconds, of the calendar window (UTC) that `now_us` lies in."""
    if window is Window.MONTH:
        now = datetime.datetime.fromtimestamp(now_us // 1_000_000, datetime.UTC)
        first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        following = (first + datetime.timedelta(days=32)).replace(day=1)
        return int(first.timestamp()) * 1_000_000, int(following.timestamp()) * 1_000_000
    length = _LENGTH_US[window]
    starts_us = now_us - now_us % length
    return starts_us, starts_us + length


_LENGTH_US = {Window.MINUTE: 60_000_000, Window.HOUR: 3_600_000_000, Window.DAY: 86_400_000_000}


def _take(
    conn: Connection, budget: Budget, *, grant: str, starts_us: int
) -> tuple[dict[str, Any], int] | tuple[None, int]:
    """Take one request and its hold from one budget. None if there is not enough; nothing has changed then."""
    hold = 0 if budget.units is None else budget.units_per_request
    requests = MAX_AMOUNT if budget.requests is None else budget.requests
    units = MAX_AMOUNT if budget.units is None else budget.units
    if requests < 1 or units < hold:
        return None, 0  # the statement checks a row that exists; a first request must fit the limits too
    entry = {"grant": grant, "budget": budget.name, "period": budget.window.value, "starts_us": starts_us, "hold": hold}
    row = conn.execute(_TAKE, {**entry, "requests": requests, "units": units}).one_or_none()
    if row is None:
        return None, 0
    entry["starts_us"], requests_used, units_taken = row
    remaining = requests - requests_used
    if hold:
        remaining = min(remaining, (units - units_taken) // hold)
    return entry, remaining


def _release(conn: Connection, grant: str) -> list[dict[str, Any]]:
    rows = conn.execute(_RELEASE, {"grant": grant}).all()
    return [{"budget": row[0], "period": row[1], "starts_us": row[2], "hold": row[3]} for row in rows]
