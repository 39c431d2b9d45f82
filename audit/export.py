"""Writing an evidence bundle from the stored log: entries, the proof of their range, a signed checkpoint over them.

That is the newest one that witnesses cosigned, if it covers the range, and else the newest one.

Reads in short transactions, so that a long export never holds the writer's file back; leaves do not change meanwhile.
Of records that are no longer kept the bundle has the hashes.
Trusts: the database for bytes only; the bundle's verifier checks them. Never: signs, never holds the whole range.
"""

from __future__ import annotations

import time
from typing import BinaryIO

from sqlalchemy import Connection, Engine, select

from audit.errors import LogUnavailable, QueryRefused
from audit.limits import EXPORT_CHUNK_RECORDS, MAX_EXPORT_RECORDS, PUBLISH_WAIT_S, RETRY_AFTER_S
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


def write_export(engine: Engine, *, first: int, last: int, out: BinaryIO, consistent_with: int | None) -> None:
    """See AuditReader.export."""
    with engine.begin() as connection:
        head = connection.execute(select(head_table.c.origin, head_table.c.size)).one()
    if not 0 <= first <= last < head.size:
        raise QueryRefused(f"the log holds records 0 to {head.size - 1}; ask for a range of these", code="range")
    if last - first >= MAX_EXPORT_RECORDS:
        raise QueryRefused(f"a bundle holds at most {MAX_EXPORT_RECORDS} records", code="range")
    size, note = _cosigned_checkpoint(engine, last, consistent_with) or _covering_checkpoint(engine, last)
    if consistent_with is not None and not 0 < consistent_with <= size:
        raise QueryRefused("the log has no checkpoint of that size to be consistent with", code="range")
    writer = BundleWriter(out, origin=head.origin, first=first, last=last, size=size, note=note)
    for start in range(first, last + 1, EXPORT_CHUNK_RECORDS):
        with engine.begin() as connection:
            tree = StoredTree(connection, size)
            writer.entries(_leaves(connection, tree, start, min(start + EXPORT_CHUNK_RECORDS, last + 1)))
    with engine.begin() as connection:
        tree = StoredTree(connection, size)
        proof = range_proof(first, last, size, tree)
        grown = consistency_proof(consistent_with, size, tree) if consistent_with else []
    writer.finish(proof, consistent_with=consistent_with or 0, consistency_proof=grown)


def _cosigned_checkpoint(engine: Engine, last: int, consistent_with: int | None) -> tuple[int, bytes] | None:
    with engine.begin() as connection:
        row = connection.execute(
            select(cosigned_table.c.size, cosigned_table.c.note).order_by(cosigned_table.c.size.desc()).limit(1)
        ).one_or_none()
    if row is None or row.size <= max(last, (consistent_with or 0) - 1):
        return None
    return row.size, bytes(row.note)


def _covering_checkpoint(engine: Engine, last: int) -> tuple[int, bytes]:
    """The newest signed checkpoint, once it covers `last`: the writer stores it a moment after the record."""
    deadline = monotonic_ns() + int(PUBLISH_WAIT_S * 1e9)
    while True:
        with engine.begin() as connection:
            row = connection.execute(
                select(checkpoint_table.c.size, checkpoint_table.c.note)
                .order_by(checkpoint_table.c.size.desc())
                .limit(1)
            ).one_or_none()
        if row is not None and row.size > last:
            return row.size, bytes(row.note)
        if monotonic_ns() > deadline:
            raise LogUnavailable(
                "no signed checkpoint covers these records yet", code="not-published", retry_after_s=RETRY_AFTER_S
            )
        time.sleep(_POLL_S)


def _leaves(connection: Connection, tree: StoredTree, start: int, stop: int) -> list[bytes | PrunedEntry]:
    """The leaves, and the hashes of those that are no longer kept."""
    rows = connection.execute(
        select(leaf_table.c.idx, leaf_table.c.leaf).where(leaf_table.c.idx >= start, leaf_table.c.idx < stop)
    )
    kept = {index: bytes(leaf) for index, leaf in rows}
    return [kept[index] if index in kept else PrunedEntry(tree(0, index)) for index in range(start, stop)]
