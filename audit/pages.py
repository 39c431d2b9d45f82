"""The statements behind a page of records: which index finds it, and how far one page looks.

A page is found by one name that an index knows, the rarest of those that are asked for; the other names are compared
record by record. Two common names may never occur together: so a page looks at PAGE_SCAN index entries at a time, for
PAGE_LOOK_NS at most, and its cursor goes on from there, even if the page is short or empty. Time alone needs no such
bound: days are found by `audit.days`.

Trusts: the database for speed; `audit.query` compares what was found with the leaves. Never: OFFSET, or a statement
whose cost grows with the log.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, func, literal_column, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from audit.errors import QueryRefused
from audit.limits import PAGE_LOOK_NS, PAGE_SCAN, RARE_RECORDS
from audit.tables import DIGEST_INDEXED, USUAL
from audit.tables import leaf as leaf_table
from audit.tables import record as record_table
from sealgate.ambient import monotonic_ns
from sealgate.limits import MAX_NAME
from sealgate.transparency.record import KINDS

_COMMON = ("inference.authorized", "inference.completed")
NAMES = ("tenant", "actor", "model", "model_digest", "purpose", "kind", "outcome", "reason")
"""What a filter may ask for by its exact value."""


class RecordFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What to look for; None means anything. Times are microseconds, `from_us` included and `to_us` not."""

    tenant: str | None = None
    actor: str | None = None
    model: str | None = None
    model_digest: str | None = None
    purpose: str | None = None
    kind: str | None = None
    outcome: str | None = None
    reason: str | None = None
    from_us: int | None = None
    to_us: int | None = None
    oldest_first: bool = False


def check_filter(wanted: RecordFilter) -> None:
    """Raise QueryRefused (`filter`) for what no record can have."""
    for name in NAMES:
        value = getattr(wanted, name)
        if value is not None and len(value) > MAX_NAME:
            raise QueryRefused(f"{name} is longer than any value in the log", code="filter")
        if value is not None and "\0" in value:
            raise QueryRefused(f"{name} has a character that no value in the log has", code="filter")
    if wanted.kind is not None and wanted.kind not in KINDS:
        raise QueryRefused("no such kind of record", code="filter")
    for moment in (wanted.from_us, wanted.to_us):
        if moment is not None and not 0 <= moment < 2**53:
            raise QueryRefused("times are microseconds since 1970", code="filter")


def _rare(name: str, value: str) -> list[ColumnElement[bool]]:
    """What the partial index needs to hear to find a value, in its own words: nothing if the value is usual."""
    usual = USUAL.get(name, ())
    if value in usual:
        return []
    words = [record_table.c[name] != literal_column(f"'{word}'") for word in usual]
    if name == "model_digest":
        length: ColumnElement[int] = literal_column(str(DIGEST_INDEXED))
        begins = func.substr(record_table.c[name], literal_column("1"), length)
        words.append(begins == value[:DIGEST_INDEXED])
    return words


class _Beside(FunctionElement[str]):
    """A column that is compared after an index found the record by another one. SQLite, without statistics, would take
    any; PostgreSQL knows better than we do."""

    inherit_cache = True
    name = "beside"


@compiles(_Beside)
def _as_it_is(element: _Beside, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(_Beside, "sqlite")
def _not_by_index(element: _Beside, compiler: SQLCompiler, **options: Any) -> str:
    return f"+{compiler.process(element.clauses, **options)}"


def _indexed(wanted: RecordFilter) -> list[str]:
    """Which of the names that are asked for an index can find, the one that should have fewest records first."""
    given = {name: getattr(wanted, name) for name in NAMES if getattr(wanted, name) is not None}
    rare = [name for name in ("reason", "outcome") if given.get(name) is not None and given[name] not in USUAL[name]]
    kind = [] if given.get("kind") in (None, *_COMMON) else ["kind"]
    named = [name for name in ("model_digest", "purpose") if given.get(name)]
    order = dict.fromkeys(("actor", *rare, *kind, *named, "model", "tenant", "kind"))
    return [name for name in order if name in given]


def find_page(
    connection: Connection, wanted: RecordFilter, *, first: int, size: int, edge: int | None, limit: int
) -> tuple[list[tuple[int, bytes]], int | None]:
    """Up to `limit` records from index `first` up to `size`, beyond `edge` in the filter's order: index and leaf. Then
    the last index that was looked at, if there is more to look at."""
    by = narrowest(connection, wanted)
    rows: list[tuple[int, bytes]] = []
    until_ns = monotonic_ns() + PAGE_LOOK_NS
    while True:
        far = looked_at(connection, wanted, by=by, first=first, size=size, edge=edge)
        statement = page_statement(wanted, first=first, size=size, edge=edge, limit=limit - len(rows), by=by, far=far)
        found = [(row.idx, bytes(row.leaf)) for row in connection.execute(statement)]
        rows += sorted(found, reverse=not wanted.oldest_first)
        if far is None or len(rows) >= limit or monotonic_ns() >= until_ns:
            return rows, far
        edge = far


def narrowest(connection: Connection, wanted: RecordFilter) -> str | None:
    """The name to find records by: of several, one that few records have, if there is such a one.

    PostgreSQL knows from its statistics and needs no answer; for SQLite as many index entries of each name are counted
    as would not be worth more.
    """
    names = _indexed(wanted)
    if len(names) < 2 or connection.dialect.name != "sqlite":
        return next(iter(names), None)
    counts = {name: connection.execute(probe_statement(name, getattr(wanted, name))).scalar_one() for name in names}
    return min(names, key=lambda name: counts[name])


def probe_statement(name: str, value: str) -> Select[int]:
    """How many records have a value, up to `RARE_RECORDS`: by the index alone, but for digests that begin alike."""
    column = record_table.c[name]
    some: Select[int] = select(literal_column("1")).where(*_rare(name, value))
    if name != "model_digest":
        some = some.where(column == value)
    return select(func.count()).select_from(some.select_from(record_table).limit(RARE_RECORDS).subquery("some"))


def page_statement(
    wanted: RecordFilter,
    *,
    size: int,
    edge: int | None,
    limit: int,
    first: int = 0,
    by: str | None = None,
    far: int | None = None,
) -> Select[int, bytes]:
    """The one statement behind `records`: keyset order on the index, within a snapshot, from index `first` up to
    `size`: who asks for a day long gone must not wait for all that came since. `by` is what `narrowest` says, `far`
    what `looked_at` does.

    The inner part picks the page from narrow rows; only the page's leaves are then read, in no certain order.
    """
    table = record_table
    first, size = _bounds(wanted, first=first, size=size, edge=edge)
    if far is not None:
        first, size = (first, far + 1) if wanted.oldest_first else (far, size)
    statement = select(table.c.idx).where(table.c.idx < size)
    if first:
        statement = statement.where(table.c.idx >= first)
    by = by or next(iter(_indexed(wanted)), None)
    for name in NAMES:
        value = getattr(wanted, name)
        if value is not None and name == by:
            statement = statement.where(*_found_by(name, value))
        elif value is not None:
            statement = statement.where(_Beside(table.c[name]) == value)
    if wanted.from_us is not None:
        statement = statement.where(table.c.ts_us >= wanted.from_us)
    if wanted.to_us is not None:
        statement = statement.where(table.c.ts_us < wanted.to_us)
    statement = statement.order_by(table.c.idx.asc() if wanted.oldest_first else table.c.idx.desc())
    page = statement.limit(limit).subquery("page")
    return select(leaf_table.c.idx, leaf_table.c.leaf).join(page, page.c.idx == leaf_table.c.idx)


def looked_at(
    connection: Connection, wanted: RecordFilter, *, by: str | None, first: int, size: int, edge: int | None
) -> int | None:
    """The last index that this page looks at, if it does not look at all that the filter leaves: counted by index
    entries of `by`, or by records if no index finds any of the names."""
    named = [name for name in NAMES if getattr(wanted, name) is not None]
    if len(named) < (1 if by is None else 2):
        return None
    low, high = _bounds(wanted, first=first, size=size, edge=edge)
    if by is None:
        far = low + PAGE_SCAN - 1 if wanted.oldest_first else high - PAGE_SCAN
        return far if low < far < high - 1 else None
    count, far = connection.execute(reach_statement(wanted, by, low=low, high=high)).one()
    return int(far) if count == PAGE_SCAN else None


def reach_statement(wanted: RecordFilter, by: str, *, low: int, high: int) -> Select[int, int]:
    """How many index entries of a name there are, up to PAGE_SCAN, and the last of these: by the index alone. Digests
    that begin alike are one to it."""
    column, value = record_table.c, getattr(wanted, by)
    same = _rare(by, value) if by == "model_digest" else _found_by(by, value)
    some = select(column.idx).where(column.idx < high, *same)
    some = some.where(column.idx >= low) if low else some
    some = some.order_by(column.idx.asc() if wanted.oldest_first else column.idx.desc()).limit(PAGE_SCAN)
    entries = some.subquery("some")
    last = func.max(entries.c.idx) if wanted.oldest_first else func.min(entries.c.idx)
    return select(func.count(), last).select_from(entries)


def _bounds(wanted: RecordFilter, *, first: int, size: int, edge: int | None) -> tuple[int, int]:
    """One bound at each end: of two, SQLite seeks to the first and goes through the rest."""
    if edge is None:
        return first, size
    return (max(first, edge + 1), size) if wanted.oldest_first else (first, min(size, edge))


def _found_by(name: str, value: str) -> list[ColumnElement[bool]]:
    """Conditions that an index answers. Digests are indexed by how they begin; SQLite would put the whole of one in
    that place, and find no index."""
    column = record_table.c[name]
    return [_Beside(column) == value if name == "model_digest" else column == value, *_rare(name, value)]
