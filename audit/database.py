"""Which database a log stands in, and what the writer and the readers ask of it.

    sqlite:///PATH                                    a file; the embedded default
    postgresql+psycopg:///NAME?host=/run/postgresql   a database of a PostgreSQL server, 15 or newer

Trusts: the operator's URL. Never: prints it, for a URL may hold what must not be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from audit.rows import Rows
from audit.sqlite import SqliteDatabase
from sealgate.errors import ConfigurationError, SealgateError

_SQLITE = "sqlite:///"
_POSTGRESQL = "postgresql+psycopg://"


class WriterHold(Protocol):
    """The one writer's connection. While it is held nobody else writes this log."""

    engine: Engine
    rows: Rows

    def release(self) -> None:
        """Close it and let another writer in. Doing so twice is harmless."""


class Database(Protocol):
    """One log's place. Making one touches nothing; connections are made when they are asked for."""

    idle_check_s: float | None
    """How often an idle writer asks whether its connection still stands; None where it cannot be lost."""

    def open_writer(self) -> WriterHold:
        """Take the log for writing. Raises LogInUse if another writer has it, ConfigurationError if it cannot be."""

    def reader_engine(self) -> Engine:
        """An engine whose connections cannot write; each transaction sees one snapshot and is bounded in time."""

    def disk_free(self) -> int:
        """Bytes left for the log. Raises OSError if that cannot be said now."""

    def pruner_engine(self) -> Engine | None:
        """An engine that may delete records and nothing else; None where the writer does that. Raises
        ConfigurationError if this user may not."""

    def scrub(self) -> bool:
        """See that what was deleted cannot be read from the database's own files any more; False if that is not in our
        hands, or not now."""

    def took_too_long(self, error: DBAPIError) -> bool:
        """Whether the error means that a reading was cut off at its bound."""

    def refusal(self, error: DBAPIError) -> SealgateError:
        """What an error of the database means to whoever opens the log."""


def open_database(url: str) -> Database:
    """The database that the URL names; raises ConfigurationError if it is none that a log can stand in."""
    if url.startswith(_POSTGRESQL):
        try:
            from audit.postgresql import PostgresqlDatabase
        except ImportError as error:
            raise ConfigurationError("a log in PostgreSQL needs the extra 'postgres' (psycopg)") from error
        return PostgresqlDatabase(url)
    return SqliteDatabase(database_path(url))


def database_path(url: str) -> Path:
    """The file behind `sqlite:///PATH` (or a plain path); raises ConfigurationError for anything else.

    PATH is taken as it is, not as a URL is: a folder may have `?` or `%` in its name, and the log stands in it.
    """
    name = url.removeprefix(_SQLITE)
    if not name or name == ":memory:" or "://" in name:
        raise ConfigurationError(
            "the log's database must be a file, given as sqlite:///PATH, or a database of a PostgreSQL server, given "
            "as postgresql+psycopg:///NAME?host=FOLDER_OF_ITS_SOCKET"
        )
    return Path(name).absolute()
