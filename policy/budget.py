"""The budget ledger: how much of each budget is used, kept in the audit log's own database.

Everything happens on a `policy.ledger.Ledger` inside the transaction of the audit writer, so a record and what it cost
become durable together or not at all. A request is counted, and its units held back, BEFORE it is forwarded; what it
really cost replaces what was held when it ends; a crash in between leaves the whole hold spent. Requests of one batch
are worked out one after the other on the same rows, so none takes what another has taken.

Integers only. A budget's row moves to the next calendar window when its first request arrives there, and never back,
whatever the clock does. Trusts: its caller's transaction, and that grant ids are unique. Never: reads or writes a table
itself, but for `balances`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, Text

from policy.budgets import Budget, PrivacyBudget
from policy.epsilon import Ended, EpsilonBook, Left, PrivacyClaim, add_tables
from policy.errors import BudgetExhausted, NoPrivacyBudget, PolicyError, PrivacyBudgetExhausted
from policy.ledger import Hold, Ledger, Pages
from policy.limits import MAX_AMOUNT
from policy.windows import window_of

__all__ = [
    "BudgetBook",
    "BudgetExhausted",
    "Claim",
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


@dataclass(frozen=True)
class Reserved:
    """What a reservation leaves: such requests still possible under the tightest budget of requests and units, and the
    privacy budget that has least. None where none applies."""

    requests: int | None
    privacy: Left | None


@dataclass(frozen=True)
class Claim:
    """What one request counts against: budgets, and privacy budgets for the most epsilon that it may spend (0 if its
    answers need no noise)."""

    budgets: tuple[Budget, ...]
    privacy: PrivacyClaim | None


class BudgetBook:
    """The budgets in force, and their use. Holds no state of its own: the tables do.

    What follows is worked out on a `policy.ledger.Ledger` that was loaded: first `expect` (or `expect_end`) says what
    will be needed of it. Whoever calls undoes what an exception leaves half done there.
    """

    tables: MetaData = _TABLES

    def __init__(self, budgets: Sequence[Budget], privacy: Sequence[PrivacyBudget] = ()) -> None:
        self._by_tenant: dict[str, list[Budget]] = {}
        for budget in budgets:
            self._by_tenant.setdefault(budget.tenant, []).append(budget)
        self._epsilon = EpsilonBook(privacy)

    def claim(self, *, tenant: str, subject: str, model: str, eps_micro: int = 0) -> Claim:
        """What a request of this caller counts against."""
        applying = [
            budget
            for budget in self._by_tenant.get(tenant, ())
            if budget.applies(tenant=tenant, subject=subject, model=model)
        ]
        privacy = None
        if eps_micro:
            privacy = self._epsilon.claim(tenant=tenant, subject=subject, model=model, micro=eps_micro)
        return Claim(tuple(applying), privacy)

    def expect(self, ledger: Ledger, claim: Claim) -> None:
        """This claim will be reserved."""
        ledger.requests.expect(budget.name for budget in claim.budgets)
        if claim.privacy is not None:
            ledger.epsilon.expect(budget.name for budget in claim.privacy.budgets)

    def expect_end(self, ledger: Ledger, *, grant: str, noised: bool) -> None:
        """This grant will be settled or abandoned; `noised` says that something may be held of a privacy budget."""
        ledger.requests.expect_end(grant)
        if noised:
            ledger.epsilon.expect_end(grant)

    def reserve(self, ledger: Ledger, claim: Claim, *, grant: str, now_us: int) -> Reserved:
        """Count one request against every budget that applies to it, or against none.

        Raises BudgetExhausted (PrivacyBudgetExhausted), naming the budget and when it renews, or NoPrivacyBudget; then
        nothing is counted, so the caller may go on with the same ledger (and record the denial).
        """
        pages = ledger.requests
        taken: list[Hold] = []
        left: int | None = None
        privacy: Left | None = None
        try:
            for budget in claim.budgets:
                hold, remaining = _take(pages, budget, now_us=now_us)
                taken.append(hold)
                left = remaining if left is None else min(left, remaining)
            if claim.privacy is not None:
                privacy = self._epsilon.hold(ledger.epsilon, claim.privacy, grant=grant, now_us=now_us)
        except PolicyError:
            for hold in taken:
                _give_back(pages, hold)
            raise
        if held := [hold for hold in taken if hold.amount]:
            pages.hold(grant, held)
        return Reserved(left, privacy)

    def settle(
        self, ledger: Ledger, *, grant: str, units: int, eps_micro: int | None = None, now_us: int
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
        for hold in ledger.requests.release(grant):
            _charge(ledger.requests, hold, units=units)
        return None if eps_micro is None else self._epsilon.settle(ledger.epsilon, grant=grant, micro=eps_micro)

    def abandon(self, ledger: Ledger, *, grant: str) -> Ended | None:
        """The request ended without anybody knowing what it cost: all that was held counts as spent."""
        for hold in ledger.requests.release(grant):
            _charge(ledger.requests, hold, units=hold.amount)
        return self._epsilon.settle(ledger.epsilon, grant=grant, micro=None)

    def balances(self, conn: Connection) -> dict[str, tuple[int, int]]:
        """What is left of each privacy budget that was ever used (millionths), and since when its window runs."""
        return self._epsilon.balances(conn)


def _take(pages: Pages, budget: Budget, *, now_us: int) -> tuple[Hold, int]:
    """Take one request and its hold from one budget, or raise BudgetExhausted; nothing has changed then."""
    period = budget.window.value
    starts_us, renews_us = window_of(budget.window, now_us)
    hold = 0 if budget.units is None else budget.units_per_request
    requests = MAX_AMOUNT if budget.requests is None else budget.requests
    units = MAX_AMOUNT if budget.units is None else budget.units
    key = (budget.name, period)
    began_us, used, spent, held = pages.use(key) or (starts_us, 0, 0, 0)
    if began_us > starts_us:  # the clock has gone back: what counts is still the later window, until it ends
        starts_us, renews_us = began_us, window_of(budget.window, began_us)[1]
    elif began_us < starts_us:
        used = spent = held = 0
    if used >= requests or spent + held > units - hold:
        raise BudgetExhausted(budget.name, renews_us=renews_us)
    used, held = used + 1, held + hold
    pages.put(key, (starts_us, used, spent, held))
    remaining = requests - used
    if hold:
        remaining = min(remaining, (units - spent - held) // hold)
    return Hold(budget.name, period, starts_us, hold), remaining


def _give_back(pages: Pages, hold: Hold) -> None:
    """What was taken a moment ago. The window that it was taken from stays the present one."""
    key = (hold.budget, hold.period)
    if (use := pages.use(key)) is not None:
        starts_us, used, spent, held = use
        pages.put(key, (starts_us, used - 1, spent, held - hold.amount))


def _charge(pages: Pages, hold: Hold, *, units: int) -> None:
    """These units were used instead of what was held, unless another window runs by now."""
    key = (hold.budget, hold.period)
    if (use := pages.use(key)) is not None and use[0] == hold.starts_us:
        starts_us, used, spent, held = use
        pages.put(key, (starts_us, used, min(spent + units, MAX_AMOUNT), held - hold.amount))
