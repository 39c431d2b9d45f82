"""The ledger of epsilon: what noised answers spent about each population, in the audit log's own database.

A sibling of `policy.budget`, which calls it with the same ledger. The most that a request may spend is held
before it is forwarded; what its signed completion says it spent replaces that when it ends; where nobody knows, all of
it counts as spent. So what was spent is never less than what left, whatever crashed.

Integers only, in millionths. Trusts: its caller's transaction, and that grant ids are unique. Never: gives back more
than was held; lets a window begin anew because a clock went back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, Text

from policy.budgets import PrivacyBudget
from policy.errors import NoPrivacyBudget, PolicyError, PrivacyBudgetExhausted, PrivacyBudgetHeld
from policy.ledger import Hold, Pages
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


_TAKEN = Statement(
    "SELECT budget, period, starts_us, spent_micro + held_micro FROM privacy_use ORDER BY budget, period"
)


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


@dataclass(frozen=True)
class PrivacyClaim:
    """The privacy budgets that a noised answer is spent from, and the most millionths that it may spend."""

    model: str
    budgets: tuple[PrivacyBudget, ...]
    micro: int


class EpsilonBook:
    """The privacy budgets in force, and their use. Holds no state of its own: the tables do."""

    def __init__(self, budgets: Sequence[PrivacyBudget]) -> None:
        self._by_model: dict[str, list[PrivacyBudget]] = {}
        self._totals = {(budget.name, budget.window.value): budget.epsilon_micro for budget in budgets}
        for budget in budgets:
            for model in budget.models:
                self._by_model.setdefault(model, []).append(budget)

    def claim(self, *, tenant: str, subject: str, model: str, micro: int) -> PrivacyClaim:
        """What a noised answer to this caller is spent from."""
        applying = [
            budget
            for budget in self._by_model.get(model, ())
            if budget.applies(tenant=tenant, subject=subject, model=model)
        ]
        return PrivacyClaim(model, tuple(applying), micro)

    def hold(self, pages: Pages, claim: PrivacyClaim, *, grant: str, now_us: int) -> Left:
        """Hold what is claimed of every budget that applies, or of none.

        Raises PrivacyBudgetExhausted (PrivacyBudgetHeld if only what others hold is in the way), naming the budget, or
        NoPrivacyBudget; then nothing is held.
        """
        if not 0 < claim.micro <= MAX_AMOUNT:
            raise PolicyError("what a noised request may spend is a whole number above 0", code="budget-amount")
        if all(budget.is_share for budget in claim.budgets):
            raise NoPrivacyBudget(claim.model)
        taken: list[Hold] = []
        least: Left | None = None
        try:
            for budget in claim.budgets:
                hold, left = _take(pages, budget, micro=claim.micro, now_us=now_us)
                taken.append(hold)
                least = _least(least, Left(budget.name, left))
        except PrivacyBudgetExhausted:
            for hold in taken:
                _give_back(pages, hold)
            raise
        pages.hold(grant, taken)
        assert least is not None
        return least

    def settle(self, pages: Pages, *, grant: str, micro: int | None) -> Ended | None:
        """Replace what was held for `grant` by what it spent: `micro`, or all of it for None. None if nothing was held.

        The window that was charged at the reservation is the one that pays. Raises PolicyError for more than was held:
        what was promised to the budget would not have been kept.
        """
        ended: Ended | None = None
        for hold in pages.release(grant):
            spent = hold.amount if micro is None else micro
            if not 0 <= spent <= hold.amount:
                raise PolicyError("a request spent more epsilon than was held for it", code="budget-amount")
            charged = _charge(pages, hold, spent=spent)
            total = self._totals.get((hold.budget, hold.period))
            left = ended.left if ended else None
            if charged is not None and total is not None:
                left = _least(left, Left(hold.budget, max(0, total - charged)))
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


def _take(pages: Pages, budget: PrivacyBudget, *, micro: int, now_us: int) -> tuple[Hold, int]:
    """Hold this of one budget, or raise PrivacyBudgetExhausted; nothing has changed then."""
    period, total = budget.window.value, budget.epsilon_micro
    starts_us, renews_us = window_of(budget.window, now_us)
    key = (budget.name, period)
    began_us, spent, held = pages.use(key) or (starts_us, 0, 0)
    if began_us > starts_us:  # the clock has gone back: what counts is still the later window
        starts_us, renews_us = began_us, window_of(budget.window, began_us)[1]
    elif began_us < starts_us:
        spent = held = 0
    if spent + held > total - micro:
        refusal = PrivacyBudgetHeld if spent + micro <= total else PrivacyBudgetExhausted
        raise refusal(budget.name, renews_us=renews_us)
    held += micro
    pages.put(key, (starts_us, spent, held))
    return Hold(budget.name, period, starts_us, micro), total - spent - held


def _give_back(pages: Pages, hold: Hold) -> None:
    """What was held a moment ago. The window that it was taken from stays the present one."""
    key = (hold.budget, hold.period)
    if (use := pages.use(key)) is not None:
        starts_us, spent, held = use
        pages.put(key, (starts_us, spent, held - hold.amount))


def _charge(pages: Pages, hold: Hold, *, spent: int) -> int | None:
    """This was spent instead of what was held: how much is taken by then; None if another window runs by now."""
    key = (hold.budget, hold.period)
    use = pages.use(key)
    if use is None or use[0] != hold.starts_us:
        return None
    starts_us, before, held = use
    pages.put(key, (starts_us, before + spent, held - hold.amount))
    return before + spent + held - hold.amount
