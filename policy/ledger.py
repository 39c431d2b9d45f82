"""The rows of the ledger that a batch of records changes: read once, changed in memory, written once.

The audit writer puts many records into one transaction, and each takes from budgets or ends what another held. One
statement for each of them would cost more than all the rest of a record; so what the batch needs is loaded with one
statement a table, `policy.budget` and `policy.epsilon` compute on it record by record, in order, and what stands in the
end is stored. Rows are plain tuples: what one record did is undone by putting the tuples back that were there before.

    expect...   say what will be needed, for every record
    load        read it: rows of use, and the holds that end, which leave their table
    begin       a record's turn; `undo` takes back what was changed since
    store       write the rows that changed, and the holds that are there, new ones and those that did not end

Two pairs of tables: requests and units, and epsilon. In each, a row of use (budget, window) has since when its window
runs and amounts; a hold (grant, budget) has the window that it was taken from and one amount.

Trusts: its caller's transaction, in which nobody else writes these tables (in SQLite because it is the only one that
writes, in PostgreSQL by a lock of its own), and that grant ids are unique. Never: commits; says that a budget is unused
that was not loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, text

from policy.errors import PolicyError
from policy.statements import NAMES, Statement, listed, sqlite_driver

Key: TypeAlias = tuple[str, str]
"""A budget's name and its window: another window for the same budget starts from zero."""
Use: TypeAlias = tuple[int, ...]
"""Since when the window runs (microseconds), then the amounts, in the order of the table's columns."""

_LOCK = int.from_bytes(hashlib.sha256(b"sealgate ledger of budgets").digest()[:8], "big", signed=True)
_TAKE_LOCK = text(f"SELECT pg_advisory_xact_lock({_LOCK})")  # for the transaction


class Hold(NamedTuple):
    """What one request under way holds of one budget."""

    budget: str
    period: str
    starts_us: int
    amount: int


class _Tables:
    """The statements of one pair of tables. Texts are built from our own names of columns, once."""

    def __init__(self, *, use: str, amounts: Sequence[str], hold: str, held: str) -> None:
        columns = ("budget", "period", "starts_us", *amounts)
        given = ", ".join(f":{name}" for name in columns)
        changed = ", ".join(f"{name} = excluded.{name}" for name in columns[2:])
        names = ", ".join(columns)
        self.amounts = tuple(amounts)
        self.read = Statement(f"SELECT {names} FROM {use} WHERE budget IN ({NAMES})")  # noqa: S608
        self.write = Statement(
            f"INSERT INTO {use} ({names}) VALUES ({given}) ON CONFLICT (budget, period) DO UPDATE SET {changed}"  # noqa: S608
        )
        holds = f"grant_id, budget, period, starts_us, {held}"
        self.take = Statement(f"DELETE FROM {hold} WHERE grant_id IN ({NAMES}) RETURNING {holds}")  # noqa: S608
        self.put = Statement(
            f"INSERT INTO {hold} ({holds}) VALUES (:grant, :budget, :period, :starts_us, :amount)"  # noqa: S608
        )


_REQUESTS = _Tables(
    use="budget_use", amounts=("requests_used", "units_used", "units_held"), hold="budget_hold", held="units"
)
_EPSILON = _Tables(use="privacy_use", amounts=("spent_micro", "held_micro"), hold="privacy_hold", held="held_micro")


class Pages:
    """One pair of tables, as far as a batch needs it."""

    def __init__(self, tables: _Tables) -> None:
        self._tables = tables
        self._budgets: set[str] = set()
        self._ends: set[str] = set()
        self._uses: dict[Key, Use] = {}
        self._holds: dict[str, tuple[Hold, ...]] = {}
        self._stored: dict[Key, Use] = {}
        self._before: list[tuple[dict[Any, Any], Any, Any]] = []  # of the record whose turn it is: where, which, what

    def expect(self, budgets: Iterable[str]) -> None:
        """The use of these will be asked for."""
        self._budgets.update(budgets)

    def expect_end(self, grant: str) -> None:
        """What this grant holds will be released."""
        self._ends.add(grant)

    def use(self, key: Key) -> Use | None:
        """How much is used; None if nothing ever was."""
        if key[0] not in self._budgets:
            raise LookupError("a budget's use was not loaded")
        return self._uses.get(key)

    def put(self, key: Key, use: Use) -> None:
        """How much is used from here on."""
        self._change(self._uses, key, use)

    def hold(self, grant: str, holds: Sequence[Hold]) -> None:
        """The request of this grant is under way. Raises PolicyError if it is already: a grant reserves once."""
        if self._holds.get(grant):
            raise PolicyError("a grant reserves once", code="budget-grant")
        self._change(self._holds, grant, tuple(holds))

    def release(self, grant: str) -> tuple[Hold, ...]:
        """It is no more: what it held. Nothing for a grant that holds nothing, or that was not expected to end."""
        held = self._holds.get(grant, ())
        if held:
            self._change(self._holds, grant, ())
        return held

    def load(self, connection: Connection) -> None:
        """Read what is expected."""
        if self._ends:
            for grant, *hold in self._tables.take.rows(connection, listed(self._ends)):
                self._holds[grant] = (*self._holds.get(grant, ()), Hold(*hold))
                self._budgets.add(hold[0])
        if self._budgets:
            for budget, period, *use in self._tables.read.rows(connection, listed(self._budgets)):
                self._uses[budget, period] = self._stored[budget, period] = tuple(use)

    def begin(self) -> None:
        """What changes from here on is undone together."""
        self._before.clear()

    def undo(self) -> None:
        """Nothing has changed since `begin`."""
        for rows, key, before in reversed(self._before):
            if before is None:
                del rows[key]
            else:
                rows[key] = before
        self._before.clear()

    def store(self, connection: Connection) -> None:
        """Write what changed."""
        changed = [
            {
                "budget": key[0],
                "period": key[1],
                "starts_us": use[0],
                **dict(zip(self._tables.amounts, use[1:], strict=True)),
            }
            for key, use in self._uses.items()
            if use != self._stored.get(key)
        ]
        if changed:
            self._tables.write.run(connection, changed)
        holds = [{"grant": grant, **hold._asdict()} for grant, every in self._holds.items() for hold in every]
        if holds:
            self._tables.put.run(connection, holds)

    def _change(self, rows: dict[Any, Any], key: Any, value: Any) -> None:
        self._before.append((rows, key, rows.get(key)))
        rows[key] = value


class Ledger:
    """Both pairs of tables, within one transaction."""

    def __init__(self) -> None:
        self.requests = Pages(_REQUESTS)
        self.epsilon = Pages(_EPSILON)

    def load(self, connection: Connection) -> None:
        """Read what is expected; once, before anything is computed."""
        if sqlite_driver(connection) is None:
            connection.execute(_TAKE_LOCK)
        self.requests.load(connection)
        self.epsilon.load(connection)

    def begin(self) -> None:
        """A record's turn."""
        self.requests.begin()
        self.epsilon.begin()

    def undo(self) -> None:
        """The record changes nothing."""
        self.requests.undo()
        self.epsilon.undo()

    def store(self, connection: Connection) -> None:
        """Write what all records together changed; once."""
        self.requests.store(connection)
        self.epsilon.store(connection)
