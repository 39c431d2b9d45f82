"""A log of any size, row for row as the writer writes it, without what a writer does for callers.

The tables are opened, checked and closed by `AuditLog` itself; leaves, index rows, tiles, roll-ups, head and seal go
through the same code as the committer's, in batches of `BATCH`. Left out: receipts, savepoints, the check of every
record against the rules (the records are `benchmarks.audit_mix`'s, and a test shows that the committer writes the same
rows from them), and all checkpoints but one a batch. Never: turns off the database's durability.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import bindparam, update

from audit.database import WriterHold, open_database
from audit.holds import NO_HOLDS
from audit.indexing import Index
from audit.log import AuditLog
from audit.opening import read_log
from audit.publishing import PublishedNotes
from audit.sealing import HeadSeal
from audit.tables import checkpoint as checkpoint_table
from audit.tables import head as head_table
from audit.tree import StoredTree, TileWriter
from benchmarks.audit_mix import START_US, SUBJECTS, TENANTS, Mix, Written
from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.transparency.merkle import Frontier, leaf_hash
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from sealgate.transparency.published import sign_root

ORIGIN = "benchmark.example/log"
SIGNER = NoteSigner.from_seed(ORIGIN, b"\x01" * 32)
SUBJECTS_KEY = b"\x02" * 32
BATCH = 20_000
_MOVE = update(head_table).where(head_table.c.id == 1, head_table.c.size == bindparam("expected"))


def begin(
    url: str, *, people: Path | None = None, clock: Clock = lambda: START_US, entropy: Entropy = random_bytes
) -> dict[tuple[str, int], str]:
    """A new log with its first opening and closing, and everybody's pseudonym; `people` as the log's `person_keys`."""
    log = AuditLog.open(
        url, signer=SIGNER, subjects_key=SUBJECTS_KEY, person_keys=people, origin=ORIGIN, clock=clock, entropy=entropy
    )  # fmt: skip
    with log:
        return {(name, one): log.actor(name, f"subject {one}") for name in TENANTS for one in range(SUBJECTS)}


def fill(url: str, records: Iterator[Written], *, batch: int = BATCH, tell: bool = False) -> int:
    """Write them behind what is there; the log's new size."""
    hold = open_database(url).open_writer()
    try:
        loader = _Loader(hold)
        while part := list(itertools.islice(records, batch)):
            loader.write(part)
            if tell:
                print(f"\r{loader.size:,} records", end="", file=sys.stderr, flush=True)
        return loader.size
    finally:
        hold.release()


def build(
    url: str, *, records: int, day: int, signed: int, people: Path | None = None, seed: int = 1, tell: bool = False
) -> int:
    """A whole log of about `records`, `day` of them a day."""
    actors = begin(url, people=people)
    mix = Mix(origin=ORIGIN, actors=actors, first=2, day=day, seed=seed, signed=signed)
    return fill(url, mix.records(records - 2), tell=tell)


class _Loader:
    """The committer's state, as far as it is needed here."""

    def __init__(self, hold: WriterHold) -> None:
        self._hold = hold
        self._index = Index(hold.rows)
        self._seal = HeadSeal(SIGNER)
        with hold.engine.begin() as connection:
            opened = read_log(
                connection, signer=SIGNER, seal=self._seal, mldsa=None, clock=now_us, entropy=random_bytes
            )
            self._shard = opened.shards.newest
        self.size = opened.frontier.size
        self._tiles: TileWriter = opened.tiles
        self._notes = PublishedNotes(checkpoint_table, self.size)

    def write(self, part: list[Written]) -> None:
        """One batch, durably, with its checkpoint."""
        size = self.size + len(part)
        rows = list(zip(range(self.size, size), part, strict=True))
        with self._hold.engine.begin() as connection:
            self._hold.rows.add(connection, [(index, one.leaf) for index, one in rows])
            for index, one in rows:
                self._index.take(index, one.record)
            self._index.write(connection)
            frontier = Frontier.restore(self.size, StoredTree(connection, self._shard, self.size))
            hashes = [leaf_hash(one.leaf) for one in part]
            completed = {(level, at): node for one in hashes for level, at, node in frontier.append(one)}
            self._tiles.append(hashes, completed, connection)
            root = frontier.root()
            values = {"size": size, "root": root, "seal": self._seal.over(size, root, holds=NO_HOLDS)}
            assert connection.execute(_MOVE.values(values), {"expected": self.size}).rowcount == 1
            note = sign_root(sign_checkpoint(Checkpoint(ORIGIN, size, root), SIGNER), SIGNER)
            self._notes.store(connection, size, note, now_us=part[-1].record.ts_us)
        self.size = size
