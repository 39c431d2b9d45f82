"""Checkpoints: signed once their records are durable, and published where readers find them.

Two tables: the log's own checkpoints, and the same with the cosignatures of its witnesses. Of each the newest stands,
the last one of every shard, and one of every minute before: enough to show at any time what the log had said of itself,
in tables that a busy log does not fill. Published ones carry the log's signatures for COSE receipts and ML-DSA-44 too.
Trusts: the committer for what is durable, and the witness client for what was cosigned. Never: commits.
"""

from __future__ import annotations

from sqlalchemy import Connection, Table, delete, insert

from audit.limits import CHECKPOINT_HISTORY_US
from audit.tables import checkpoint as checkpoint_table
from audit.tables import cosigned as cosigned_table
from sealgate.ambient import Clock
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import Checkpoint, NoteSigner, parse_checkpoint_text, sign_checkpoint, split_note
from sealgate.transparency.published import sign_published, sign_root


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


class Publisher:
    """Signs checkpoints, and stores them where readers find them. Owned by the writer thread.

    Of notes it is told up to which position they reach, through all shards.
    """

    def __init__(
        self, *, published: int, cosigned: int, signer: NoteSigner, mldsa: Cosigner | None, clock: Clock
    ) -> None:
        """`published` and `cosigned` are how far the newest stored notes reach; -1 for none."""
        self._stored = PublishedNotes(checkpoint_table, published)
        self._cosigned = PublishedNotes(cosigned_table, cosigned)
        self._signer, self._mldsa, self._clock = signer, mldsa, clock
        self._last: tuple[int, bytes] | None = None  # the last checkpoint of a shard that ended, if not stored yet
        self._newest: tuple[int, bytes] | None = None
        self._witnessed: list[tuple[int, bytes]] = []  # cosigned ones that readers cannot see yet

    @property
    def note(self) -> bytes:
        """The newest signed checkpoint; b"" before there is one."""
        return self._newest[1] if self._newest else b""

    @property
    def unpublished(self) -> bool:
        """A checkpoint was signed, or cosigned, that readers cannot see yet."""
        waiting = self._newest is not None and self._newest[0] > self._stored.size
        return waiting or bool(self._witnessed or self._last)

    def sign(self, reach: int, checkpoint: Checkpoint, signer: NoteSigner) -> bytes:
        """The note of the newest checkpoint, which is durable, by the log's key under the name of its shard."""
        note = sign_checkpoint(checkpoint, signer)
        self._newest = (reach, note)
        return note

    def sign_last(self, reach: int, checkpoint: Checkpoint) -> None:
        """The last checkpoint of a shard that has ended, which is durable."""
        self._last = (reach, sign_checkpoint(checkpoint, self._signer.under(checkpoint.origin)))
        self._cosigned.keep()

    def take_cosigned(self, reach: int, note: bytes) -> None:
        """A checkpoint that witnesses cosigned, for the next time."""
        self._witnessed.append((reach, note))

    def store(self, connection: Connection, *, ends: frozenset[int]) -> None:
        """Everything that readers cannot see yet; `ends` is where shards ended. The caller commits."""
        now = self._clock()
        if self._last is not None:
            self._store(connection, *self._last, now_us=now)
            self._stored.keep()
            self._last = None
        if self._newest is not None and self._newest[0] > self._stored.size:
            self._store(connection, *self._newest, now_us=now)
        for reach, note in sorted(self._witnessed):
            if reach > self._cosigned.size:
                self._cosigned.store(connection, reach, note, now_us=now)
            if reach in ends:
                self._cosigned.keep()
        self._witnessed.clear()

    def _store(self, connection: Connection, reach: int, note: bytes, *, now_us: int) -> None:
        origin = parse_checkpoint_text(split_note(note)[0]).origin
        note = sign_root(note, self._signer.under(origin))
        if self._mldsa is not None:
            note = sign_published(note, self._mldsa.under(origin), timestamp_s=now_us // 1_000_000)
        self._stored.store(connection, reach, note, now_us=now_us)
