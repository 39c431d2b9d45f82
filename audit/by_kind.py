"""Records of some kinds, by the index: in the order of the log, or the newest of them. Reports that list ask here.

Trusts: the database; a leaf that is not of the kind under which its index row stood is an error. Never: scans `record`
or `leaf`, or reads more leaves than a report may.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice

from sqlalchemy import Connection, Select, select

from audit.errors import LogDamaged, QueryRefused
from audit.limits import EXPORT_CHUNK_RECORDS, MAX_REPORT_LISTED, MAX_REPORT_RECORDS
from audit.tables import leaf as leaf_table
from audit.tables import record as record_table
from sealgate.errors import DecodeError
from sealgate.transparency.record import Record, parse_leaf

Seen = tuple[int, Record, bytes]
"""Position, record, leaf."""
TOO_MANY = f"the answer takes more than {MAX_REPORT_RECORDS} records; narrow it, or export a range and ask the bundle"


def listed(
    connection: Connection, kinds: Sequence[str], *, low: int, high: int, most: int = MAX_REPORT_RECORDS
) -> Iterator[Seen]:
    """Records of these kinds between two indices, in the order of the log; QueryRefused beyond `most`."""
    by_kind = [_of_kind(connection, kind, low=low, high=high) for kind in kinds]
    for number, (index, leaf, kind) in enumerate(heapq.merge(*by_kind)):
        if number >= most:
            raise QueryRefused(TOO_MANY, code="range")
        yield index, checked_record(index, leaf, kind), leaf


def newest_listed(
    connection: Connection, kinds: Sequence[str], *, low: int, high: int
) -> tuple[list[Seen], int | None]:
    """The newest MAX_REPORT_LISTED of these kinds, in the order of the log; and the position of the first of them, if
    there are older ones."""
    streams = [_of_kind_back(connection, kind, low=low, high=high) for kind in kinds]
    found = list(islice(heapq.merge(*streams, reverse=True), MAX_REPORT_LISTED + 1))
    more = len(found) > MAX_REPORT_LISTED
    seen = [(index, checked_record(index, leaf, kind), leaf) for index, leaf, kind in found[:MAX_REPORT_LISTED][::-1]]
    return seen, seen[0][0] if more else None


def _of_kind(connection: Connection, kind: str, *, low: int, high: int) -> Iterator[tuple[int, bytes, str]]:
    at = low
    while at <= high:
        rows = connection.execute(kind_statement(kind, low=at, high=high)).all()
        yield from sorted((row.idx, bytes(row.leaf), kind) for row in rows)
        if len(rows) < EXPORT_CHUNK_RECORDS:
            return
        at = max(row.idx for row in rows) + 1


def _of_kind_back(connection: Connection, kind: str, *, low: int, high: int) -> Iterator[tuple[int, bytes, str]]:
    while high >= low:
        rows = connection.execute(kind_statement(kind, low=low, high=high, newest=True)).all()
        yield from sorted(((row.idx, bytes(row.leaf), kind) for row in rows), reverse=True)
        if len(rows) < EXPORT_CHUNK_RECORDS:
            return
        high = min(row.idx for row in rows) - 1


def kind_statement(kind: str, *, low: int, high: int, newest: bool = False) -> Select[tuple[int, bytes]]:
    """A page of one kind: the index picks it, only then are its leaves read. `newest` takes it from the end."""
    table = record_table
    order = table.c.idx.desc() if newest else table.c.idx.asc()
    page = (
        select(table.c.idx)
        .where(table.c.kind == kind, table.c.idx >= low, table.c.idx <= high)
        .order_by(order)
        .limit(EXPORT_CHUNK_RECORDS)
        .subquery("page")
    )
    return select(leaf_table.c.idx, leaf_table.c.leaf).join(page, page.c.idx == leaf_table.c.idx)


def checked_record(index: int, leaf: bytes, kind: str | None = None) -> Record:
    try:
        record = parse_leaf(leaf)
    except DecodeError as error:
        raise LogDamaged(f"record {index} is damaged in the database") from error
    if kind not in (None, record.kind):
        raise LogDamaged(f"record {index} is not what the database's index says")
    return record
