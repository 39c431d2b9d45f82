"""A batch's rows on their way into the tables, as SQLite takes them best; `audit.copying` is PostgreSQL's way.

Statements go to the driver's own connection, which is in the caller's transaction: what runs for every record costs a
third of what it costs through SQLAlchemy. Errors come out as SQLAlchemy's, as they do from every other statement.
Lists of names go as one parameter, so that a statement's text does not depend on how many there are.
Trusts: the committer for what the rows say. Never: commits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sealgate.transparency.record import Record

_ADD_LEAF = "INSERT INTO leaf (idx, leaf) VALUES (?, ?)"
_INDEXED = ("idx", "id", "ts_us", "kind", "tenant", "actor", "model", "model_digest", "purpose", "outcome", "reason")
_ADD_RECORD = f"INSERT INTO record ({', '.join(_INDEXED)}) VALUES ({', '.join('?' * len(_INDEXED))})"  # noqa: S608
_BEGIN_INTENT = "INSERT INTO open_intent (grant_id, idx) VALUES (?, ?)"
_TAKEN = "SELECT id FROM record WHERE id IN (SELECT value FROM json_each(?))"
_END_INTENTS = "DELETE FROM open_intent WHERE grant_id IN (SELECT value FROM json_each(?))"


class Rows:
    """The writer's way to its bulk tables."""

    def taken(self, connection: Connection, given: Sequence[str]) -> set[str]:
        """Those of the ids that a record has already."""
        return {name for (name,) in _run(connection, _TAKEN, (_listed(given),))}

    def add(self, connection: Connection, new: Sequence[tuple[int, bytes]]) -> None:
        """Write leaves."""
        _insert(connection, _ADD_LEAF, new)

    def index(self, connection: Connection, new: Sequence[tuple[int, Record]]) -> None:
        """Write index rows."""
        _insert(connection, _ADD_RECORD, [index_values(index, record) for index, record in new])

    def savepoint(self, connection: Connection, *, after: bool) -> None:
        """Begin what an effect does, so that it can be undone alone; `after` says that another effect went before."""
        if after:
            _run(connection, "RELEASE effect")
        _run(connection, "SAVEPOINT effect")

    def begin_intents(self, connection: Connection, begun: Sequence[tuple[str, int]]) -> None:
        """These requests are open: grant, and where its authorization stands."""
        _insert(connection, _BEGIN_INTENT, begun)

    def end_intents(self, connection: Connection, ended: Sequence[str]) -> None:
        """These requests are open no more."""
        _run(connection, _END_INTENTS, (_listed(ended),))


def index_values(index: int, record: Record) -> tuple[object, ...]:
    """The row of `record` that a leaf implies: the whole table can be rebuilt with this."""
    return (
        index,
        record.id,
        record.ts_us,
        record.kind,
        record.tenant,
        record.actor,
        record.model,
        record.model_digest,
        record.purpose,
        record.outcome,
        record.reason,
    )


def index_row(index: int, record: Record) -> dict[str, object]:
    """The same, by the names of its columns."""
    return dict(zip(_INDEXED, index_values(index, record), strict=True))


def _listed(names: Sequence[str]) -> str:
    return msgspec.json.encode(names).decode()


def begin_immediately(connection: Connection) -> None:
    """Begin the writer's transaction: nobody else writes from here on."""
    _run(connection, "BEGIN IMMEDIATE")


class Statement:
    """SQL with `:name` parameters, the same text for SQLite and PostgreSQL, that runs for every batch."""

    def __init__(self, sql: str) -> None:
        self._sql, self._text = sql, text(sql)

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run it for each row; how many rows of tables the last one changed, or all of them together."""
        if not isinstance(connection.connection.driver_connection, sqlite3.Connection):
            return connection.execute(self._text, list(rows)).rowcount
        try:
            return _raw(connection).executemany(self._sql, rows).rowcount
        except sqlite3.Error as error:
            raise _as_sqlalchemy(self._sql, error) from error


def _raw(connection: Connection) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def _run(connection: Connection, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
    try:
        return _raw(connection).execute(statement, values).fetchall()
    except sqlite3.Error as error:
        raise _as_sqlalchemy(statement, error) from error


def _insert(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Row by row: one statement of many rows was slower, where a table has many indexes."""
    try:
        _raw(connection).executemany(statement, rows)
    except sqlite3.Error as error:
        raise _as_sqlalchemy(statement, error) from error


def _as_sqlalchemy(statement: str, error: sqlite3.Error) -> BaseException:
    """Without the parameters: what is written is nobody's business who reads an error."""
    return DBAPIError.instance(statement, None, error, sqlite3.Error, hide_parameters=True)
