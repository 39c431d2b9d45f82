"""What a record brings about besides itself, in the transaction that writes it.

Two kinds. An `Effect` acts on the database itself, for one record, in a savepoint of its own: what is rare. What comes
with every request is a `LedgerEffect`: the records of a batch share a `Ledger`, which reads what all of them need,
lets each be worked out in memory, in their order, and writes once; so a batch of any size costs the same statements.

Trusts: ledgers for being exact, and for undoing what a refused record did. Never: writes anything itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection

from sealgate.transparency.record import Record

Effect: TypeAlias = Callable[[Connection, Record], Record]
"""Runs inside the writer's transaction, in a SAVEPOINT of its own, with the record as it would be written (id and time
filled). Returns the record to write, the same or another (a denial, for example). MUST NOT commit, roll back, block, or
touch the log's own tables or those of a ledger. Raising undoes what it did and fails this append alone; an error of the
database itself fails the log."""


class Ledger(Protocol):
    """Tables beside the log's own, as far as one batch needs them. Made for each batch, used by one thread."""

    def load(self, connection: Connection) -> None:
        """Read what effects said that they need; once, before any of them runs."""

    def begin(self) -> None:
        """An effect runs next."""

    def undo(self) -> None:
        """Its record was refused: nothing has changed since `begin`."""

    def store(self, connection: Connection) -> None:
        """Write what the batch changed; once, after all of them ran."""


L = TypeVar("L", bound=Ledger)


@dataclass(frozen=True)
class LedgerEffect(Generic[L]):
    """An effect on a ledger: effects of one batch with the same `ledger` share one, and run in their order.

    `expect` says what `run` will need to have been read; `run` works on the ledger in memory and returns the record to
    write. Both get the record as it would be written. Neither may touch a database; raising fails this append alone,
    and an error of `load` or `store` fails the log.
    """

    ledger: Callable[[], L]
    expect: Callable[[L, Record], None]
    run: Callable[[L, Record], Record]


AnyEffect: TypeAlias = Effect | LedgerEffect[Any]


class Ledgers:
    """Those of one batch: one for all effects that name the same."""

    def __init__(self) -> None:
        self._made: dict[Callable[[], Ledger], Ledger] = {}

    def of(self, effect: LedgerEffect[Any]) -> Ledger:
        """The one that this effect acts on."""
        found = self._made.get(effect.ledger)
        if found is None:
            found = self._made[effect.ledger] = effect.ledger()
        return found

    def load(self, connection: Connection) -> None:
        """See Ledger."""
        for ledger in self._made.values():
            ledger.load(connection)

    def store(self, connection: Connection) -> None:
        """See Ledger."""
        for ledger in self._made.values():
            ledger.store(connection)
