"""What leaves imply, written for many leaves together: their index rows, open requests, roll-ups by day.

A transaction writes every page that it touches, whole, and an index row touches a page in each of a dozen B-trees: for
a few records that is most of what they cost. So while many requests are under way, the rows of what requests leave in
the log (LATER) may wait for a later transaction: until INDEX_BEHIND of them do, a checkpoint is published (at once when
the writer is idle), or a record of another kind comes. Readers wait for them. What a crash cut off, the next start
derives from leaves, once they are known to be those of the tree.

Trusts: the committer for its records, and `opening` for leaves that it has hashed. Never: commits; lets a record of any
other kind wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, delete, func, insert, select

from audit.days import count_days
from audit.errors import LogDamaged
from audit.limits import INDEX_BEHIND
from audit.rows import Rows, index_row
from audit.tables import leaf as leaf_table
from audit.tables import open_intent as intent_table
from audit.tables import record as record_table
from sealgate.errors import DecodeError
from sealgate.transparency.record import ENDS, Record, parse_leaf

LATER = frozenset({"inference.authorized", "inference.denied", "inference.completed", "inference.failed"})
"""The kinds that can wait: those that come in numbers. No transaction of the writer looks for them by the index."""


class Index:
    """The records whose rows are not written yet. Owned by the writer thread."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._behind: dict[str, tuple[int, Record]] = {}
        self._due = False

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._behind

    @property
    def due(self) -> bool:
        """Whether this transaction must write them."""
        return self._due or len(self._behind) >= INDEX_BEHIND

    def take(self, position: int, record: Record) -> None:
        """A record that is being written stands at this position."""
        self._behind[record.id] = (position, record)
        self._due = self._due or record.kind not in LATER

    def write(self, connection: Connection) -> None:
        """Write them, in the caller's transaction."""
        if not self._behind:
            return
        new = list(self._behind.values())
        self._rows.index(connection, new)
        count_days(connection, new)
        begun, ended = _requests(new)
        if begun:
            self._rows.begin_intents(connection, begun)
        if ended:
            self._rows.end_intents(connection, ended)
        self._behind.clear()
        self._due = False


def indexed_size(connection: Connection) -> int:
    """Up to which position there are index rows."""
    newest = connection.execute(select(func.max(record_table.c.idx))).scalar_one()
    return 0 if newest is None else int(newest) + 1


def catch_up_index(connection: Connection) -> None:
    """Write the rows that a crash cut off; `catch_up_days` counts the records. Raises LogDamaged if that is not what is
    missing. Costs nothing where there is nothing to do."""
    leaves = select(leaf_table.c.idx, leaf_table.c.leaf).where(leaf_table.c.idx >= indexed_size(connection))
    new = [(position, _waiting(position, leaf)) for position, leaf in connection.execute(leaves)]
    if not new:
        return
    new.sort(key=lambda placed: placed[0])
    connection.execute(insert(record_table), [index_row(position, record) for position, record in new])
    begun, ended = _requests(new)
    if begun:
        connection.execute(insert(intent_table), [{"grant_id": grant, "idx": position} for grant, position in begun])
    if ended:
        connection.execute(delete(intent_table).where(intent_table.c.grant_id.in_(ended)))


def _waiting(position: int, leaf: bytes) -> Record:
    try:
        record = parse_leaf(bytes(leaf))
    except DecodeError as error:
        raise LogDamaged(f"record {position} is damaged in the database") from error
    if record.kind not in LATER:
        raise LogDamaged(f"the index row of record {position} is missing")
    return record


def _requests(new: Iterable[tuple[int, Record]]) -> tuple[Sequence[tuple[str, int]], Sequence[str]]:
    """Those that begin here and are still open then, with their positions; and those that began before and end here."""
    begun: dict[str, int] = {}
    ended = []
    for position, record in new:
        if record.kind == "inference.authorized":
            begun[record.id] = position
        elif record.kind in ENDS and begun.pop(record.grant, None) is None:
            ended.append(record.grant)
    return list(begun.items()), ended
