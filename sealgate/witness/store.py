"""What a witness remembers: for each log, the newest checkpoint that it cosigned. One SQLite file.

The whole worth of a witness is that it never goes back, so a checkpoint replaces another only in one transaction that
finds the very size it was checked against, and that is on the disk before anything is signed.
Trusts: the file system's fsync. Never: forgets a log, or stores a smaller tree.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealgate.errors import ConfigurationError
from sealgate.transparency.notes import Checkpoint

_BUSY_S = 10.0
_TABLES = """
CREATE TABLE IF NOT EXISTS newest (
    origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL, seen_us INTEGER NOT NULL
) STRICT
"""


@dataclass(frozen=True)
class Seen:
    """The newest checkpoint of a log that this witness cosigned, and when. `note` carries the log's signature."""

    checkpoint: Checkpoint
    note: bytes
    seen_us: int


class Store:
    """One file; may be used by several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with self._connection() as connection:
                connection.execute(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"the witness's memory {path} cannot be used: {error}") from error

    def newest(self, origin: str) -> Seen | None:
        """What was cosigned last of this log; None if nothing was."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT size, root, note, seen_us FROM newest WHERE origin = ?", (origin,)
            ).fetchone()
        return None if row is None else Seen(Checkpoint(origin, row[0], row[1]), row[2], row[3])

    def every(self) -> list[Seen]:
        """What was cosigned last of each log, and of each shard of one."""
        with self._connection() as connection:
            rows = connection.execute("SELECT origin, size, root, note, seen_us FROM newest ORDER BY origin").fetchall()
        return [Seen(Checkpoint(*row[:3]), row[3], row[4]) for row in rows]

    @contextmanager
    def held(self, origin: str) -> Iterator[Seen | None]:
        """What was cosigned last of this log, while nothing is cosigned by anybody else."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.newest(origin)
            finally:
                connection.execute("ROLLBACK")

    def replace(self, before: int, checkpoint: Checkpoint, note: bytes, *, now_us: int) -> bool:
        """Make `checkpoint` the newest if the one that is stored still has the size `before` (0: none is stored).

        True when it is on the disk. False: another request came first, nothing was changed.
        """
        values = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root, "note": note}
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute("SELECT size, root FROM newest WHERE origin = ?", (checkpoint.origin,)).fetchone()
            size, root = row or (0, b"")
            if (
                size != before
                or checkpoint.size < size
                or (checkpoint.size == size and row and root != checkpoint.root)
            ):
                connection.execute("ROLLBACK")
                return False
            connection.execute(
                "INSERT INTO newest (origin, size, root, note, seen_us) VALUES (:origin, :size, :root, :note, :now) "
                "ON CONFLICT (origin) DO UPDATE SET size = :size, root = :root, note = :note, seen_us = :now",
                values | {"now": now_us},
            )
            connection.execute("COMMIT")
        return True

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            yield connection
        finally:
            connection.close()
