"""A batch's rows on their way into the tables, as SQLite takes them best; `audit.copying` is PostgreSQL's way.

Statements are built once: building them costs as much as running them. Lists of names go as one parameter, so that a
statement's text does not depend on how many there are. Everything runs in the transaction of the caller.
Trusts: the committer for what the rows say. Never: commits.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, insert, text

from audit.tables import leaf as leaf_table
from audit.tables import record as record_table
from sealgate.transparency.record import Record

_ADD_LEAVES, _ADD_RECORDS = insert(leaf_table), insert(record_table)
_TAKEN = text("SELECT id FROM record WHERE id IN (SELECT value FROM json_each(:given))")
_END_INTENTS = text("DELETE FROM open_intent WHERE grant_id IN (SELECT value FROM json_each(:ended))")


class Rows:
    """The writer's way to its bulk tables."""

    def taken(self, connection: Connection, given: Sequence[str]) -> set[str]:
        """Those of the ids that a record has already."""
        return set(connection.execute(_TAKEN, {"given": _listed(given)}).scalars())

    def add(self, connection: Connection, new: Sequence[tuple[int, bytes, Record]]) -> None:
        """Write leaves and their index rows."""
        connection.execute(_ADD_LEAVES, [{"idx": index, "leaf": leaf} for index, leaf, _ in new])
        connection.execute(_ADD_RECORDS, [index_row(index, record) for index, _, record in new])

    def savepoint(self, connection: Connection, *, after: bool) -> None:
        """Begin what an effect does, so that it can be undone alone; `after` says that another effect went before."""
        if after:
            connection.exec_driver_sql("RELEASE effect")
        connection.exec_driver_sql("SAVEPOINT effect")

    def end_intents(self, connection: Connection, ended: Sequence[str]) -> None:
        """These requests are open no more."""
        connection.execute(_END_INTENTS, {"ended": _listed(ended)})


def index_row(index: int, record: Record) -> dict[str, object]:
    """The row of `record` that a leaf implies: the whole table can be rebuilt with this."""
    return {
        "idx": index,
        "id": record.id,
        "ts_us": record.ts_us,
        "kind": record.kind,
        "tenant": record.tenant,
        "actor": record.actor,
        "model": record.model,
        "model_digest": record.model_digest,
        "purpose": record.purpose,
        "outcome": record.outcome,
        "reason": record.reason,
    }


def _listed(names: Sequence[str]) -> str:
    return msgspec.json.encode(names).decode()
