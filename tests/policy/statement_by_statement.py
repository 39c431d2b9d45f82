"""The ledger as one SQL statement for each step of each request: what `policy.ledger` must agree with, row for row.

Only the database computes here, one request after the other; slow, and independent of what works in memory.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from policy.budget import Claim, Ended, Left, NoPrivacyBudget, Reserved
from policy.budgets import Budget, PrivacyBudget
from policy.errors import BudgetExhausted, PolicyError, PrivacyBudgetExhausted, PrivacyBudgetHeld
from policy.limits import MAX_AMOUNT
from policy.windows import window_of

_MOVED = "ledger.starts_us < excluded.starts_us"
_TAKE = text(f"""
    INSERT INTO budget_use AS ledger (budget, period, starts_us, requests_used, units_used, units_held)
    VALUES (:budget, :period, :starts_us, 1, 0, :hold)
    ON CONFLICT (budget, period) DO UPDATE SET
        requests_used = 1 + CASE WHEN {_MOVED} THEN 0 ELSE ledger.requests_used END,
        units_used = CASE WHEN {_MOVED} THEN 0 ELSE ledger.units_used END,
        units_held = :hold + CASE WHEN {_MOVED} THEN 0 ELSE ledger.units_held END,
        starts_us = CASE WHEN {_MOVED} THEN excluded.starts_us ELSE ledger.starts_us END
    WHERE {_MOVED} OR (ledger.requests_used < :requests AND ledger.units_used + ledger.units_held <= :units - :hold)
    RETURNING starts_us, requests_used, units_used + units_held
""")
_BEGAN = text("SELECT starts_us FROM budget_use WHERE budget = :budget AND period = :period")
_GIVE_BACK = text("""
    UPDATE budget_use SET requests_used = requests_used - 1, units_held = units_held - :hold
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
""")
_HOLD = text("INSERT INTO budget_hold VALUES (:grant, :budget, :period, :starts_us, :hold)")
_RELEASE = text("DELETE FROM budget_hold WHERE grant_id = :grant RETURNING budget, period, starts_us, units AS hold")
_CHARGE = text(f"""
    UPDATE budget_use SET
        units_held = units_held - :hold,
        units_used = CASE WHEN units_used > {MAX_AMOUNT} - :units THEN {MAX_AMOUNT} ELSE units_used + :units END
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
""")
_TAKE_EPSILON = text(f"""
    INSERT INTO privacy_use AS ledger (budget, period, starts_us, spent_micro, held_micro)
    VALUES (:budget, :period, :starts_us, 0, :hold)
    ON CONFLICT (budget, period) DO UPDATE SET
        spent_micro = CASE WHEN {_MOVED} THEN 0 ELSE ledger.spent_micro END,
        held_micro = :hold + CASE WHEN {_MOVED} THEN 0 ELSE ledger.held_micro END,
        starts_us = CASE WHEN {_MOVED} THEN excluded.starts_us ELSE ledger.starts_us END
    WHERE {_MOVED} OR ledger.spent_micro + ledger.held_micro <= :total - :hold
    RETURNING starts_us, spent_micro + held_micro
""")
_SPENT = text("SELECT spent_micro, starts_us FROM privacy_use WHERE budget = :budget AND period = :period")
_HOLD_EPSILON = text("INSERT INTO privacy_hold VALUES (:grant, :budget, :period, :starts_us, :hold)")
_GIVE_BACK_EPSILON = text("""
    UPDATE privacy_use SET held_micro = held_micro - :hold
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
""")
_RELEASE_EPSILON = text(
    "DELETE FROM privacy_hold WHERE grant_id = :grant RETURNING budget, period, starts_us, held_micro AS hold"
)
_CHARGE_EPSILON = text("""
    UPDATE privacy_use SET held_micro = held_micro - :hold, spent_micro = spent_micro + :spent
    WHERE budget = :budget AND period = :period AND starts_us = :starts_us
    RETURNING spent_micro + held_micro
""")


def reserve(conn: Connection, claim: Claim, *, grant: str, now_us: int) -> Reserved:
    taken: list[dict[str, Any]] = []
    left: int | None = None
    privacy: Left | None = None
    try:
        for budget in claim.budgets:
            entry, remaining = _take(conn, budget, grant=grant, now_us=now_us)
            taken.append(entry)
            left = remaining if left is None else min(left, remaining)
        if claim.privacy is not None:
            privacy = _hold_epsilon(conn, claim, grant=grant, now_us=now_us)
    except PolicyError:
        for entry in taken:
            conn.execute(_GIVE_BACK, entry)
        raise
    for entry in taken:
        if entry["hold"]:
            conn.execute(_HOLD, entry)
    return Reserved(left, privacy)


def end(
    conn: Connection,
    privacy: tuple[PrivacyBudget, ...],
    *,
    grant: str,
    units: int | None,
    micro: int | None,
    noised: bool,
) -> Ended | None:
    """None for units or millionths: all that was held."""
    for entry in map(dict, conn.execute(_RELEASE, {"grant": grant}).mappings().all()):
        conn.execute(_CHARGE, {**entry, "units": entry["hold"] if units is None else units})
    if not noised:
        return None
    totals = {(budget.name, budget.window.value): budget.epsilon_micro for budget in privacy}
    ended: Ended | None = None
    for entry in map(dict, conn.execute(_RELEASE_EPSILON, {"grant": grant}).mappings().all()):
        spent = entry["hold"] if micro is None else micro
        if not 0 <= spent <= entry["hold"]:
            raise PolicyError("above the hold", code="budget-amount")
        charged = conn.execute(_CHARGE_EPSILON, {**entry, "spent": spent}).scalar_one_or_none()
        left = ended.left if ended else None
        if charged is not None:
            one = Left(entry["budget"], max(0, totals[entry["budget"], entry["period"]] - charged))
            left = one if left is None or one.micro < left.micro else left
        ended = Ended(spent, left)
    if ended is None and micro:
        raise PolicyError("nothing held", code="budget-amount")
    return ended


def _take(conn: Connection, budget: Budget, *, grant: str, now_us: int) -> tuple[dict[str, Any], int]:
    starts_us, renews_us = window_of(budget.window, now_us)
    hold = 0 if budget.units is None else budget.units_per_request
    requests = MAX_AMOUNT if budget.requests is None else budget.requests
    units = MAX_AMOUNT if budget.units is None else budget.units
    entry = {"grant": grant, "budget": budget.name, "period": budget.window.value, "starts_us": starts_us, "hold": hold}
    row = None
    if requests >= 1 and units >= hold:
        row = conn.execute(_TAKE, {**entry, "requests": requests, "units": units}).one_or_none()
    if row is None:
        began_us = conn.execute(_BEGAN, entry).scalar_one_or_none() or 0
        if began_us > starts_us:
            renews_us = window_of(budget.window, began_us)[1]
        raise BudgetExhausted(budget.name, renews_us=renews_us)
    entry["starts_us"], used, taken = row
    remaining = requests - used
    return entry, min(remaining, (units - taken) // hold) if hold else remaining


def _hold_epsilon(conn: Connection, claim: Claim, *, grant: str, now_us: int) -> Left:
    assert claim.privacy is not None
    if all(budget.is_share for budget in claim.privacy.budgets):
        raise NoPrivacyBudget(claim.privacy.model)
    taken: list[dict[str, Any]] = []
    least: Left | None = None
    for budget in claim.privacy.budgets:
        starts_us, renews_us = window_of(budget.window, now_us)
        micro, total = claim.privacy.micro, budget.epsilon_micro
        entry = {
            "grant": grant, "budget": budget.name, "period": budget.window.value, "starts_us": starts_us, "hold": micro
        }  # fmt: skip
        row = conn.execute(_TAKE_EPSILON, {**entry, "total": total}).one_or_none() if micro <= total else None
        if row is None:
            for before in taken:
                conn.execute(_GIVE_BACK_EPSILON, before)
            spent, began_us = conn.execute(_SPENT, entry).one_or_none() or (0, 0)
            if began_us > starts_us:
                renews_us = window_of(budget.window, began_us)[1]
            refusal = PrivacyBudgetHeld if spent + micro <= total else PrivacyBudgetExhausted
            raise refusal(budget.name, renews_us=renews_us)
        entry["starts_us"] = row[0]
        taken.append(entry)
        one = Left(budget.name, total - row[1])
        least = one if least is None or one.micro < least.micro else least
    for entry in taken:
        conn.execute(_HOLD_EPSILON, entry)
    assert least is not None
    return least
