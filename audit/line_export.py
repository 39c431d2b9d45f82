"""Writing a run of records out of the stored log, a line each, in one of the forms of `sealgate.transparency.exports`.

Reads in short transactions, so that a long export never holds the writer's file back; leaves do not change meanwhile.
A line proves nothing by itself: what must be proven goes into an evidence bundle (`audit.export`).
Trusts: the database for bytes only; a leaf that is no record ends the export. Never: holds the whole range.
"""

from __future__ import annotations

from typing import BinaryIO

from sqlalchemy import Connection, Engine, Select, select

from audit.errors import LogDamaged, QueryRefused
from audit.limits import EXPORT_CHUNK_RECORDS, MAX_EXPORT_RECORDS
from audit.shards import read_shards
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from sealgate.errors import DecodeError
from sealgate.transparency.exports.formats import ExportFormat
from sealgate.transparency.exports.leaves import place


def write_lines(
    engine: Engine,
    *,
    first: int,
    last: int,
    out: BinaryIO,
    form: ExportFormat,
    origin: str | None = None,
    kept_only: bool = False,
) -> None:
    """See AuditReader.export_lines."""
    with engine.begin() as connection:
        head = connection.execute(select(head_table.c.origin, head_table.c.size)).one()
        shards = read_shards(connection, origin=head.origin, size=head.size)
    shard = shards.named(origin)
    size = shards.size_of(shard)
    if not 0 <= first <= last < size:
        raise QueryRefused(f"the log holds records 0 to {size - 1}; ask for a range of these", code="range")
    if last - first >= MAX_EXPORT_RECORDS:
        raise QueryRefused(f"an export holds at most {MAX_EXPORT_RECORDS} records", code="range")
    for start in range(first, last + 1, EXPORT_CHUNK_RECORDS):
        stop = min(start + EXPORT_CHUNK_RECORDS, last + 1)
        with engine.begin() as connection:
            leaves = _leaves(connection, shard.first + start, shard.first + stop, kept_only=kept_only)
        lines = b"".join(_line(form, position - shard.first, leaf) for position, leaf in leaves)
        out.write(form.header + lines if start == first else lines)


def chunk_statement(start: int, stop: int) -> Select[int, bytes]:
    """The one statement behind an export of lines: leaves start..stop-1, by their primary key."""
    columns = select(leaf_table.c.idx, leaf_table.c.leaf)
    return columns.where(leaf_table.c.idx >= start, leaf_table.c.idx < stop).order_by(leaf_table.c.idx)


def _leaves(connection: Connection, start: int, stop: int, *, kept_only: bool) -> list[tuple[int, bytes]]:
    rows = connection.execute(chunk_statement(start, stop)).all()
    if not kept_only and [row.idx for row in rows] != list(range(start, stop)):
        raise QueryRefused("records of this range are no longer kept; ask for those that are (kept=1)", code="range")
    return [(row.idx, bytes(row.leaf)) for row in rows]


def _line(form: ExportFormat, index: int, leaf: bytes) -> bytes:
    try:
        return form.line(place(index, leaf))
    except DecodeError as error:
        raise LogDamaged(f"record {index} is damaged in the database") from error
