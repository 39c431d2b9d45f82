"""A ledger for one request at a time, on tables that stand before and after each step: what most tests look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from policy.budget import BudgetBook, Ended, Reserved
from policy.budgets import Budget, PrivacyBudget
from policy.ledger import Ledger

T = TypeVar("T")


class OneByOne:
    """A book whose every request is a batch of its own."""

    tables = BudgetBook.tables

    def __init__(self, budgets: Sequence[Budget] = (), privacy: Sequence[PrivacyBudget] = ()) -> None:
        self.book = BudgetBook(budgets, privacy)
        self.balances = self.book.balances

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
        ledger = Ledger()
        claim = self.book.claim(tenant=tenant, subject=subject, model=model, eps_micro=eps_micro)
        self.book.expect(ledger, claim)
        ledger.load(conn)
        try:
            return self.book.reserve(ledger, claim, grant=grant, now_us=now_us)
        finally:
            ledger.store(conn)  # who is denied is recorded too, with what that leaves

    def settle(
        self, conn: Connection, *, grant: str, units: int, eps_micro: int | None = None, now_us: int
    ) -> Ended | None:
        def end(ledger: Ledger) -> Ended | None:
            return self.book.settle(ledger, grant=grant, units=units, eps_micro=eps_micro, now_us=now_us)

        return self._end(conn, grant, end, noised=eps_micro is not None)

    def abandon(self, conn: Connection, *, grant: str) -> Ended | None:
        return self._end(conn, grant, lambda ledger: self.book.abandon(ledger, grant=grant), noised=True)

    def _end(self, conn: Connection, grant: str, end: Callable[[Ledger], T], *, noised: bool) -> T:
        """As the audit writer does it: an end that is refused changes nothing."""
        ledger = Ledger()
        self.book.expect_end(ledger, grant=grant, noised=noised)
        ledger.load(conn)
        ledger.begin()
        try:
            return end(ledger)
        except BaseException:
            ledger.undo()
            raise
        finally:
            ledger.store(conn)
