"""Tells of every statement of a writer: those that SQLAlchemy runs, and those that go to SQLite's driver directly."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event

from audit import rows
from policy import statements

Told = Callable[[str], None]


class _Watched:
    """A driver's connection, as far as statements use it."""

    def __init__(self, raw: sqlite3.Connection, before: Told, after: Told) -> None:
        self._raw, self._before, self._after = raw, before, after

    def execute(self, statement: str, *values: Any) -> Any:
        return self._run(self._raw.execute, statement, *values)

    def executemany(self, statement: str, *values: Any) -> Any:
        return self._run(self._raw.executemany, statement, *values)

    def _run(self, run: Callable[..., Any], statement: str, *values: Any) -> Any:
        self._before(statement)
        ran = run(statement, *values)
        self._after(statement)
        return ran


@contextmanager
def told_of(engine: Any, *, before: Told = lambda _: None, after: Told = lambda _: None) -> Iterator[None]:
    """`before` and `after` hear the SQL of each statement of this engine, or of the class Engine; they may raise."""
    raw, driver = rows._raw, statements.sqlite_driver

    def watched(connection: Connection) -> Any:
        return _Watched(raw(connection), before, after)

    def watched_driver(connection: Connection) -> Any:
        found = driver(connection)
        return found and _Watched(found, before, after)

    def begins(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        before(statement)

    def ended(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        after(statement)

    rows._raw, statements.sqlite_driver = watched, watched_driver  # type: ignore[assignment]
    event.listen(engine, "before_cursor_execute", begins)
    event.listen(engine, "after_cursor_execute", ended)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", begins)
        event.remove(engine, "after_cursor_execute", ended)
        rows._raw, statements.sqlite_driver = raw, driver
