"""A batch's rows on their way into PostgreSQL: leaves and index rows by binary COPY, lists as arrays.

COPY is for what grows: two statements for a batch of any size, and no text in between. Everything runs on the
connection of the caller's transaction. Trusts: the committer for what the rows say. Never: commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from audit.rows import Rows, index_values
from sealgate.transparency.record import Record

_LEAVES = "COPY leaf (idx, leaf) FROM STDIN (FORMAT BINARY)"
_LEAF_TYPES = ("int8", "bytea")
_RECORDS = (
    "COPY record (idx, id, ts_us, kind, tenant, actor, model, model_digest, purpose, outcome, reason) "
    "FROM STDIN (FORMAT BINARY)"
)
_RECORD_TYPES = ("int8", "text", "int8", *["text"] * 8)  # in the order of `index_values`
_TAKEN = text("SELECT id FROM record WHERE id = ANY(:given)")
_BEGIN_INTENTS = text(
    "INSERT INTO open_intent (grant_id, idx) SELECT * FROM unnest(CAST(:grants AS text[]), CAST(:places AS int8[]))"
)
_END_INTENTS = text("DELETE FROM open_intent WHERE grant_id = ANY(:ended)")


class CopiedRows(Rows):
    """The writer's way to its bulk tables in PostgreSQL."""

    def taken(self, connection: Connection, given: Sequence[str]) -> set[str]:
        return set(connection.execute(_TAKEN, {"given": list(given)}).scalars())

    def add(self, connection: Connection, new: Sequence[tuple[int, bytes]]) -> None:
        _copy(connection, _LEAVES, _LEAF_TYPES, new)

    def index(self, connection: Connection, new: Sequence[tuple[int, Record]]) -> None:
        _copy(connection, _RECORDS, _RECORD_TYPES, (index_values(index, record) for index, record in new))

    def savepoint(self, connection: Connection, *, after: bool) -> None:
        """The same in one journey to the server: effects are many, and each journey is waited for."""
        statement = b"RELEASE effect; SAVEPOINT effect" if after else b"SAVEPOINT effect"
        try:
            _raw(connection).execute(statement, prepare=False)
        except psycopg.Error as error:
            raise OperationalError(statement.decode(), None, error) from error

    def begin_intents(self, connection: Connection, begun: Sequence[tuple[str, int]]) -> None:
        connection.execute(_BEGIN_INTENTS, {"grants": [name for name, _ in begun], "places": [at for _, at in begun]})

    def end_intents(self, connection: Connection, ended: Sequence[str]) -> None:
        connection.execute(_END_INTENTS, {"ended": list(ended)})


def _raw(connection: Connection) -> psycopg.Connection[Any]:
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


def _copy(connection: Connection, statement: str, types: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Errors come out as SQLAlchemy's, as they do from every other statement."""
    try:
        with _raw(connection).cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        raise OperationalError(statement, None, error) from error
