"""Writing an evidence bundle from the stored log: entries, the proof of their range, a signed checkpoint over them.

That is the shard's newest one that witnesses cosigned, if it covers the range, and else the shard's newest one.

Reads in short transactions, so that a long export never holds the writer's file back; leaves do not change meanwhile.
Of records that are no longer kept the bundle has the hashes.
Trusts: the database for bytes only; the bundle's verifier checks them. Never: signs, never holds the whole range.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import Connection, Engine, Table, select

from audit.errors import LogUnavailable, QueryRefused
from audit.limits import EXPORT_CHUNK_RECORDS, MAX_EXPORT_RECORDS, PUBLISH_WAIT_S, RETRY_AFTER_S
from audit.shards import Shard, read_shards
from audit.tables import checkpoint as checkpoint_table
from audit.tables import cosigned as cosigned_table
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from audit.tree import StoredTree
from sealgate.ambient import monotonic_ns
from sealgate.transparency.bundle import BundleWriter, PrunedEntry
from sealgate.transparency.merkle import consistency_proof
from sealgate.transparency.ranges import range_proof

_POLL_S = 0.02


def write_export(
    engine: Engine, *, first: int, last: int, out: BinaryIO, consistent_with: int | None, origin: str | None
) -> None:
    """See AuditReader.export."""
    with engine.begin() as connection:
        head = connection.execute(select(head_table.c.origin, head_table.c.size)).one()
        shards = read_shards(connection, origin=head.origin, size=head.size)
    shard = shards.named(origin)
    count = shards.size_of(shard)
    if not 0 <= first <= last < count:
        raise QueryRefused(f"the log holds records 0 to {count - 1}; ask for a range of these", code="range")
    if last - first >= MAX_EXPORT_RECORDS:
        raise QueryRefused(f"a bundle holds at most {MAX_EXPORT_RECORDS} records", code="range")
    # Of this shard, whatever came after it.
    newest = _Newest(engine, first=shard.first, end=shards.end(shard) if shard is not shards.newest else 2**62)
    size, note = _cosigned_checkpoint(newest, last, consistent_with) or _covering_checkpoint(newest, last)
    if consistent_with is not None and not 0 < consistent_with <= size:
        raise QueryRefused("the log has no checkpoint of that size to be consistent with", code="range")
    writer = BundleWriter(out, origin=shard.origin, first=first, last=last, size=size, note=note)
    for start in range(first, last + 1, EXPORT_CHUNK_RECORDS):
        with engine.begin() as connection:
            tree = StoredTree(connection, shard, size)
            writer.entries(_leaves(connection, shard, tree, start, min(start + EXPORT_CHUNK_RECORDS, last + 1)))
    with engine.begin() as connection:
        tree = StoredTree(connection, shard, size)
        proof = range_proof(first, last, size, tree)
        grown = consistency_proof(consistent_with, size, tree) if consistent_with else []
    writer.finish(proof, consistent_with=consistent_with or 0, consistency_proof=grown)


@dataclass(frozen=True)
class _Newest:
    """Where the newest notes of one shard are read, and the size of its tree that each is of."""

    engine: Engine
    first: int
    end: int

    def of(self, table: Table) -> tuple[int, bytes] | None:
        within = table.c.size <= self.end
        wanted = select(table.c.size, table.c.note).where(within).order_by(table.c.size.desc()).limit(1)
        with self.engine.begin() as connection:
            row = connection.execute(wanted).one_or_none()
        if row is None or (self.first and row.size <= self.first):
            return None
        return row.size - self.first, bytes(row.note)


def _cosigned_checkpoint(newest: _Newest, last: int, consistent_with: int | None) -> tuple[int, bytes] | None:
    found = newest.of(cosigned_table)
    if found is None or found[0] <= max(last, (consistent_with or 0) - 1):
        return None
    return found


def _covering_checkpoint(newest: _Newest, last: int) -> tuple[int, bytes]:
    """The newest signed checkpoint, once it covers `last`: the writer stores it a moment after the record."""
    deadline = monotonic_ns() + int(PUBLISH_WAIT_S * 1e9)
    while True:
        found = newest.of(checkpoint_table)
        if found is not None and found[0] > last:
            return found
        if monotonic_ns() > deadline:
            raise LogUnavailable(
                "no signed checkpoint covers these records yet", code="not-published", retry_after_s=RETRY_AFTER_S
            )
        time.sleep(_POLL_S)


def _leaves(connection: Connection, shard: Shard, tree: StoredTree, start: int, stop: int) -> list[bytes | PrunedEntry]:
    """The leaves, and the hashes of those that are no longer kept."""
    low, high = shard.first + start, shard.first + stop
    rows = connection.execute(
        select(leaf_table.c.idx, leaf_table.c.leaf).where(leaf_table.c.idx >= low, leaf_table.c.idx < high)
    )
    kept = {position - shard.first: bytes(leaf) for position, leaf in rows}
    return [kept[index] if index in kept else PrunedEntry(tree(0, index)) for index in range(start, stop)]
