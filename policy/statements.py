"""The ledgers' statements: one text for SQLite and PostgreSQL, run by the shortest way in the caller's transaction.

A ledger's statements run several times for every request. Through SQLAlchemy one of them costs four to six times what
SQLite itself needs, so on SQLite they go to the driver's own connection, which is the same transaction, and errors come
out as SQLAlchemy's, which is what callers know. Trusts: its caller's transaction. Never: commits, or shows parameters
in an error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

Values: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Sequence[Any]


class Statement:
    """SQL with `:name` parameters. Values that a statement does not name are ignored."""

    def __init__(self, sql: str) -> None:
        self._sql = sql
        self._text = text(sql)

    def rows(self, connection: Connection, values: Values) -> Sequence[Row]:
        """Run it; every row that comes back."""
        raw = _sqlite(connection)
        if raw is None:
            return connection.execute(self._text, values).all()
        try:
            return raw.execute(self._sql, values).fetchall()
        except sqlite3.Error as error:
            raise _as_sqlalchemy(self._sql, error) from error

    def row(self, connection: Connection, values: Values) -> Row | None:
        """Run it; the one row that comes back, or None."""
        rows = self.rows(connection, values)
        return rows[0] if rows else None

    def run(self, connection: Connection, many: Sequence[Values]) -> None:
        """Run it once for each of the values; nothing comes back."""
        raw = _sqlite(connection)
        if raw is None:
            connection.execute(self._text, list(many))
            return
        try:
            raw.executemany(self._sql, many)
        except sqlite3.Error as error:
            raise _as_sqlalchemy(self._sql, error) from error


def _sqlite(connection: Connection) -> sqlite3.Connection | None:
    """The driver's connection, where the database is SQLite."""
    raw = connection.connection.driver_connection
    return raw if isinstance(raw, sqlite3.Connection) else None


def _as_sqlalchemy(sql: str, error: sqlite3.Error) -> BaseException:
    return DBAPIError.instance(sql, None, error, sqlite3.Error, hide_parameters=True)
