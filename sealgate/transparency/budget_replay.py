"""Privacy budgets, replayed: every change of what is left of a budget has a request that explains it.

A noised request holds epsilon when it is authorized and spends some of it when it ends; both records name the budget
that has least left, and what is left of it then. Between two records that name the same budget:

    left after = left before - held by authorizations + given back by ends

where requests that name another budget may or may not have counted against this one too. A budget begins anew when
a UTC day began in between, or when another policy came into force; nothing else may raise it.

Pure. Trusts nothing. Never: knows the whole of a budget, which stands in the policy; nor that a window was a day's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sealgate.transparency.carried import KIND as CARRIED
from sealgate.transparency.carried import balances_of, restated
from sealgate.transparency.checks import Problems, Range, Verdict
from sealgate.transparency.record import ENDS, Record

_DAY_US = 86_400_000_000
_CLOCKS_APART_US = 60_000_000  # a record's time is read a moment before its budget's


@dataclass
class Book:
    """What is known of one budget. `low` and `high` bound what requests that named others may have changed since."""

    left: int
    asked_us: int  # when its window was surely in force: only authorizations begin one, ends may belong to the old one
    index: int
    low: int = 0
    high: int = 0
    requests: int = 0
    spent: int = 0
    renewals: int = 0
    full: int = 0  # what a renewal set it to, 0 until one was seen

    def renews_by(self, ts_us: int) -> bool:
        """Whether a UTC midnight lies between the last authorization in the budget's window and now."""
        return (self.asked_us - _CLOCKS_APART_US) // _DAY_US < (ts_us + _CLOCKS_APART_US) // _DAY_US


class BudgetReplay:
    """A check of the offline verifier, and the heart of the report on budgets."""

    name = "privacy budgets add up"

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self.held: dict[str, tuple[str, int]] = {}  # open authorizations: the budget they named, and millionths
        self.noised = 0
        self.spent = 0
        self.problems = Problems()
        self._first = -1
        self._asked_us = 0  # the newest authorization of noise, whatever it named
        self._digest = ""
        self._reopened = False  # the policy may have changed while the host was down: the next record of it says
        self._deferred: list[str] = []
        self._other_policy = False  # of an earlier policy more may have been spent than this one allows
        self._undecided = 0
        self._gone = 0  # records that are no longer kept
        self.carried: dict[str, tuple[int, int]] = {}  # left of budgets when the shard began, and since when
        self.wholes: dict[str, int] = {}  # what renewals set budgets to under the policy that the shard began with
        self._changed = False  # another policy came into force within the shard

    def miss(self, index: int, hashed: bytes) -> None:
        """A record is no longer kept: it may have changed any budget."""
        self._first = min(index, self._first) if self._first >= 0 else index
        self.books.clear()
        self._deferred.clear()
        self._gone += 1

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        if self._first < 0:
            self._first = index
            self._other_policy = index > 0 or "previous_origin" in record.detail
        if record.kind == CARRIED:
            self._take_over(index, record)
        elif record.kind == "policy.change":
            self._policy(record)
        elif record.kind == "log.opened":
            self._reopened = True
        elif record.kind == "inference.authorized":
            self._hold(index, record)
        elif record.kind in ENDS:
            self._end(index, record)

    def _take_over(self, index: int, record: Record) -> None:
        """What the shard before left: its policy, its open authorizations, the balances of its budgets."""
        original = restated(record)
        if original.kind == "policy.change":
            self._digest = original.policy_digest
        elif original.kind == "inference.authorized":
            self.held[original.id] = (original.detail.get("privacy_budget", ""), original.eps_micro)
        for name, (left, since_us) in balances_of(record).items():
            if since_us > record.ts_us + _CLOCKS_APART_US:
                self.problems.add(f"record {index} carries budget {name} over from a window that had not begun")
            self.carried[name] = (left, since_us)
            self.books[name] = Book(left, since_us + 2 * _CLOCKS_APART_US, index)

    def contradictions(self, carried: Mapping[str, tuple[int, int]], wholes: Mapping[str, int]) -> list[str]:
        """Where what the next shard begins with is not what this one's records lead to. `wholes` is what renewals set
        budgets to there, before its policy changed."""
        found: list[str] = []
        if not carried:
            return found  # that it says nothing is said elsewhere: `chain`
        for name, book in self.books.items():
            left, since_us = carried.get(name, (-1, 0))
            low, high = max(0, book.left + book.low), book.left + book.high
            if left < 0:
                found.append(f"budget {name} is not carried over")
            elif left < low or (left > high and not book.renews_by(since_us)):
                found.append(f"budget {name} is carried over with {left}, the records say {_between(low, high)}")
            elif book.full and (left > book.full or wholes.get(name, book.full) != book.full):
                found.append(f"budget {name} is another after the turn than the one that was renewed to {book.full}")
        return found

    def _policy(self, record: Record) -> None:
        before = self._digest or record.detail.get("previous", "")
        if before and before != record.policy_digest:
            self.books.clear()
            self._deferred.clear()
            self._other_policy = self._changed = True
        for text in self._deferred:
            self.problems.add(text)
        self._deferred.clear()
        self._digest, self._reopened = record.policy_digest, False

    def _hold(self, index: int, record: Record) -> None:
        held, budget = record.eps_micro, record.detail.get("privacy_budget", "")
        self.held[record.id] = (budget, held)
        if not held:
            return
        self.noised += 1
        self._asked_us = max(self._asked_us, record.ts_us)
        if not budget or held < 0:
            self.problems.add(f"record {index} authorizes noise that no privacy budget pays for")
            return
        self._change(index, record, budget, low=-held, high=-held)

    def _end(self, index: int, record: Record) -> None:
        budget, spent = record.detail.get("privacy_budget", ""), record.eps_micro
        begun = self.held.pop(record.grant, None)
        self.spent += spent
        if begun is None:
            if budget or spent:  # Reconcile says whether it may begin before the range
                self._undecided += 1
                self.books.pop(budget, None)
            return
        held = begun[1]
        if not 0 <= spent <= held:
            self.problems.add(f"record {index} spends {spent} millionths of epsilon where {held} were held")
        elif not record.runtime_sig and spent != held:
            self.problems.add(f"record {index} gives back epsilon although no worker signed what was spent")
        if budget:
            self._change(index, record, budget, low=held - spent, high=held - spent)

    def _change(self, index: int, record: Record, budget: str, *, low: int, high: int) -> None:
        """`budget` is named with what is left of it; the request changed it by `low` to `high`."""
        left = record.budget_after_micro
        book = self.books.get(budget)
        if left < 0:
            self.problems.add(f"record {index} leaves less than nothing of budget {budget}")
        if book is None:
            book = self.books[budget] = Book(left, 0, index)
        else:
            self._compare(
                index, record, budget, book, low=book.left + book.low + low, high=book.left + book.high + high
            )
        book.left, book.index, book.low, book.high = left, index, 0, 0
        if record.kind == "inference.authorized":
            book.requests += 1
            book.asked_us = max(book.asked_us, record.ts_us)
        else:
            book.spent += record.eps_micro
        for name, other in self.books.items():
            if name != budget:
                other.low, other.high = other.low + min(0, low), other.high + max(0, high)

    def _compare(self, index: int, record: Record, budget: str, book: Book, *, low: int, high: int) -> None:
        left = record.budget_after_micro
        if self._other_policy and book.left == 0:
            low = 0
        if low <= left <= high or (self._other_policy and left == 0 and high >= 0):
            return
        if left > high and book.renews_by(record.ts_us):
            self._renew(index, record, budget, book)
            return
        text = f"record {index} says {left} left of budget {budget}, the records say {_between(low, high)}"
        if self._reopened:
            self._deferred.append(text)
        else:
            self.problems.add(text)

    def _renew(self, index: int, record: Record, budget: str, book: Book) -> None:
        book.renewals += 1
        book.spent = 0
        book.asked_us = self._asked_us
        if record.kind != "inference.authorized" or book.low or book.high:
            return  # not the first request of the new window
        whole = record.budget_after_micro + record.eps_micro
        if book.full and whole != book.full:
            self.problems.add(f"record {index} renews budget {budget} to {whole}, before it was {book.full}")
        book.full = whole
        if not self._changed:
            self.wholes.setdefault(budget, whole)

    def verdict(self, part: Range) -> Verdict:
        """Contradictions, or how much was replayed."""
        if self.problems.count:
            return self.problems.verdict()
        done = f"{self.noised} noised requests, {len(self.books)} budgets"
        if self._undecided or self._deferred or self._gone:
            waiting = [f"{self._undecided} ends belong to requests before the range"] if self._undecided else []
            waiting += [f"{self._gone} records are no longer kept"] if self._gone else []
            waiting += ["the policy after a restart stands beyond the range"] if self._deferred else []
            return Verdict("skipped", f"{done}; " + "; ".join(waiting))
        return Verdict("ok", done)


def _between(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
