"""What is used, held and left of every budget, read from the ledger's tables. For people and monitors.

Trusts: its caller's connection. Never: writes, or counts anything: only the writer of the log does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from policy.budgets import Budget, PrivacyBudget, Window
from policy.errors import LedgerUnreadable
from policy.windows import window_of

_COUNTED = text("SELECT budget, period, starts_us, requests_used, units_used, units_held FROM budget_use")
_SPENT = text("SELECT budget, period, starts_us, spent_micro, held_micro FROM privacy_use")

_Rows = dict[tuple[str, str], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One limit of one budget in its present window. `what` is "requests", "units" or "epsilon" (in millionths)."""

    budget: str
    what: str
    whose: str
    window: str
    limit: int
    used: int
    held: int
    renews_us: int | None  # None: never

    @property
    def left(self) -> int:
        """What may still be asked for; held counts as used until it is settled."""
        return max(0, self.limit - self.used - self.held)


def read_ledger(
    engine: Engine | None, budgets: Sequence[Budget], privacy: Sequence[PrivacyBudget], *, now_us: int
) -> list[Usage]:
    """`read_usage` in one snapshot; `engine` is None where there is no log yet. Raises LedgerUnreadable."""
    if engine is None:
        return read_usage(None, budgets, privacy, now_us=now_us)
    try:
        with engine.begin() as conn:
            return read_usage(conn, budgets, privacy, now_us=now_us)
    except DBAPIError as error:
        raise LedgerUnreadable("the log's database cannot be read; is it there, and may you read it?") from error
    finally:
        engine.dispose()


def read_usage(
    conn: Connection | None, budgets: Sequence[Budget], privacy: Sequence[PrivacyBudget], *, now_us: int
) -> list[Usage]:
    """Every limit of every budget, in order. `conn` is None where nothing was ever counted."""
    counted, spent = _read(conn, "budget_use"), _read(conn, "privacy_use")
    found: list[Usage] = []
    for budget in budgets:
        starts_us, renews_us = window_of(budget.window, now_us)
        requests, units, held = _present(counted, budget.name, budget.window, starts_us, width=3)
        whose = _whose(budget.tenant, budget.subject, (budget.model,) if budget.model else ())
        for what, limit, used, holds in (
            ("requests", budget.requests, requests, 0),
            ("units", budget.units, units, held),
        ):
            if limit is not None:
                found.append(
                    Usage(
                        budget=budget.name,
                        what=what,
                        whose=whose,
                        window=budget.window.value,
                        limit=limit,
                        used=used,
                        held=holds,
                        renews_us=renews_us,
                    )
                )
    for one in privacy:
        starts_us, renews_us = window_of(one.window, now_us)
        used, held = _present(spent, one.name, one.window, starts_us, width=2)
        found.append(
            Usage(
                budget=one.name,
                what="epsilon",
                whose=f"{one.population}: {_whose(one.tenant, one.subject, one.models)}",
                window=one.window.value,
                limit=one.epsilon_micro,
                used=used,
                held=held,
                renews_us=renews_us or None,
            )
        )
    return found


def _read(conn: Connection | None, table: str) -> _Rows:
    if conn is None or not inspect(conn).has_table(table):
        return {}
    query = _COUNTED if table == "budget_use" else _SPENT
    return {(row[0], row[1]): tuple(row[2:]) for row in conn.execute(query)}


def _present(rows: _Rows, name: str, window: Window, starts_us: int, *, width: int) -> tuple[int, ...]:
    """The amounts of the present window; what an older window used is past."""
    began_us, *amounts = rows.get((name, window.value), (-1, *[0] * width))
    return tuple(amounts) if began_us >= starts_us else (0,) * width


def _whose(tenant: str | None, subject: str | None, models: Sequence[str]) -> str:
    who = "/".join(part for part in (tenant, subject) if part) or "everybody"
    return f"{who}, {' '.join(models)}" if models else who
