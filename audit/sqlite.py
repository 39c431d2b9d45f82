"""A log in an SQLite file: one durable writer, readers that cannot write.

The embedded database, through SQLAlchemy. pysqlite would begin, commit and upgrade transactions on its own; here it is
put in autocommit mode and every transaction is begun by us, IMMEDIATE for the writer and deferred for readers, so that
what the code says is what the database does. Trusts: the file system's fsync. Never: lets a second writer in.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from audit.errors import LogDamaged, LogInUse, reason_of
from audit.limits import BUSY_TIMEOUT_MS, MAX_QUERY_S, SCRUB_WAIT_S, WAL_AUTOCHECKPOINT_PAGES
from audit.rows import Rows, begin_immediately
from sealgate.ambient import monotonic_ns
from sealgate.errors import ConfigurationError, SealgateError

_PROGRESS_OPCODES = 10_000


class SqliteDatabase:
    """The file at `path`, as `audit.database.Database` asks for it."""

    idle_check_s: float | None = None  # a file does not go away behind an open descriptor

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = os.fspath(path.parent)

    def open_writer(self) -> SqliteHold:
        """Take the log for writing; creates the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(self._path)
        try:
            create_private(self._path)
            return SqliteHold(writer_engine(self._path), lock)
        except BaseException:
            lock.release()
            raise

    def reader_engine(self) -> Engine:
        """Readers' connections."""
        return reader_engine(self._path)

    def disk_free(self) -> int:
        """Bytes that an ordinary user may still write where the log is."""
        status = os.statvfs(self._folder)
        return status.f_bavail * status.f_frsize

    def pruner_engine(self) -> Engine | None:
        """None: a file has one writer, and that one deletes."""
        return None

    def scrub(self) -> bool:
        """Deleted rows are overwritten in the file; here the write-ahead log, where they also stood, is emptied. Waits
        for readers for much less time than the writer waits for us."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=SCRUB_WAIT_S)) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def took_too_long(self, error: DBAPIError) -> bool:
        """Whether the deadline of a reading cut it off."""
        return getattr(error.orig, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT

    def refusal(self, error: DBAPIError) -> SealgateError:
        """What to say when the log cannot be opened."""
        return LogDamaged(f"the log's database cannot be used ({reason_of(error)})")


class SqliteHold:
    """The writer's engine, and the lock that makes it the only one."""

    def __init__(self, engine: Engine, lock: WriterLock) -> None:
        self.engine = engine
        self.rows = Rows()
        self._lock = lock

    def release(self) -> None:
        """Let go of the file and let another writer in. Doing so twice is harmless."""
        self.engine.dispose()
        self._lock.release()


class WriterLock:
    """Exclusive hold on one log, for as long as this object is not released or the process lives."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise LogInUse(f"{path} is being written by another process; stop it first") from error

    def release(self) -> None:
        """Let another writer in. Doing so twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def create_private(path: Path) -> None:
    """Make sure that the file exists, readable and writable by its owner only, and that its name is durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ConfigurationError(f"{path} is not a regular file")


def writer_engine(path: Path) -> Engine:
    """The writer's engine: one connection, WAL, every commit on disk before it returns."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_reset_on_return=None,  # every transaction is committed or rolled back by whoever began it
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            f"wal_autocheckpoint={WAL_AUTOCHECKPOINT_PAGES}",
            "foreign_keys=ON",
            "secure_delete=ON",  # a deleted identity is overwritten, not only unlinked
            "trusted_schema=OFF",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        begin_immediately(connection)

    return engine


def reader_engine(path: Path) -> Engine:
    """An engine whose connections are opened read-only; each transaction sees one snapshot, each is timed."""
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000
        ),
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=28,
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA query_only=ON").fetchall()
        connection.execute("PRAGMA trusted_schema=OFF").fetchall()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        raw = connection.connection.dbapi_connection
        deadline = monotonic_ns() + int(MAX_QUERY_S * 1e9)
        raw.set_progress_handler(lambda: monotonic_ns() > deadline, _PROGRESS_OPCODES)  # type: ignore[union-attr]
        connection.exec_driver_sql("BEGIN")

    return engine
