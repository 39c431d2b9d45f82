"""Where published checkpoints go: the log's own, and the same with the cosignatures of its witnesses.

Of each kind the newest stands, and one of every minute before: enough to show at any time what the log had said of
itself, in tables that a busy log does not fill. Trusts: the committer and the witness client for what the notes say.
Never: commits.
"""

from __future__ import annotations

from sqlalchemy import Connection, Table, delete, insert

from audit.limits import CHECKPOINT_HISTORY_US


class PublishedNotes:
    """One of the two tables, as its writer knows it. Owned by the writer thread."""

    def __init__(self, table: Table, newest_size: int) -> None:
        self._table = table
        self._put = insert(table)
        self._drop = delete(table)
        self._us = 0  # when the newest was stored; 0 keeps the one of an earlier run
        self.size = newest_size  # up to which position the newest stored one reaches; -1 if there is none

    def keep(self) -> None:
        """The newest one is of a shard that has ended: it stands for good."""
        self._us = 0

    def store(self, connection: Connection, size: int, note: bytes, *, now_us: int) -> None:
        """Put it in the place of the one before, unless that one is of another minute. `size` is how many records of
        the log it reaches to, through all shards. The caller commits."""
        if self._us // CHECKPOINT_HISTORY_US == now_us // CHECKPOINT_HISTORY_US:
            connection.execute(self._drop.where(self._table.c.size == self.size))
        connection.execute(self._put.values(size=size, ts_us=now_us, note=note))
        self.size, self._us = size, now_us
