"""SQL for the ledger, the same for SQLite and PostgreSQL but where it must differ, without SQLAlchemy's price for each.

The ledger's statements run for every batch of records. Through SQLAlchemy one of them costs four to six times what
SQLite itself needs, so on SQLite they go to the driver's own connection, which is the same transaction, and errors come
out as SQLAlchemy's, which is what callers know. Lists of names go as one parameter, so that a statement's text does not
depend on how many there are. Trusts: its caller's transaction. Never: commits, or shows parameters in an error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

Values: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Sequence[Any]

NAMES = "SELECT value FROM json_each(:names)"
"""The names that `listed` put into the parameter `names`, in SQLite's words; `Statement` knows PostgreSQL's."""
_NAMES_POSTGRESQL = "SELECT json_array_elements_text(CAST(:names AS json))"


class Statement:
    """SQL with `:name` parameters. Values that a statement does not name are ignored."""

    def __init__(self, sql: str) -> None:
        self._sql = sql
        self._text = text(sql.replace(NAMES, _NAMES_POSTGRESQL))

    def rows(self, connection: Connection, values: Values) -> Sequence[Row]:
        """Run it; every row that comes back."""
        raw = sqlite_driver(connection)
        if raw is None:
            return connection.execute(self._text, values).all()
        try:
            return raw.execute(self._sql, values).fetchall()
        except sqlite3.Error as error:
            raise _as_sqlalchemy(self._sql, error) from error

    def run(self, connection: Connection, many: Sequence[Values]) -> None:
        """Run it once for each of the values; nothing comes back."""
        raw = sqlite_driver(connection)
        if raw is None:
            connection.execute(self._text, list(many))
            return
        try:
            raw.executemany(self._sql, many)
        except sqlite3.Error as error:
            raise _as_sqlalchemy(self._sql, error) from error


def listed(names: Iterable[str]) -> Values:
    """The parameter of a statement that says NAMES."""
    return {"names": msgspec.json.encode(list(names)).decode()}


def sqlite_driver(connection: Connection) -> sqlite3.Connection | None:
    """The driver's connection, where the database is SQLite."""
    raw = connection.connection.driver_connection
    return raw if isinstance(raw, sqlite3.Connection) else None


def _as_sqlalchemy(sql: str, error: sqlite3.Error) -> BaseException:
    return DBAPIError.instance(sql, None, error, sqlite3.Error, hide_parameters=True)
