"""Roll-ups by day: what reports over millions of records add up, and between which indices a day's records stand.

Kept in the writer's transaction, so a reader's snapshot always has both or neither. Derived: `catch_up_days` counts
what is not counted yet (a log from before there were roll-ups), `rebuild_days` begins again from the leaves.

A record belongs to the day of its own time, whatever the clock did; so a day's span may overlap its neighbours'.
Trusts: its caller's transaction. Never: commits; is evidence of anything: leaves are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select, text

from audit.errors import LogDamaged
from audit.limits import EXPORT_CHUNK_RECORDS
from audit.rows import Statement
from audit.tables import day_count, day_span
from audit.tables import leaf as leaf_table
from sealgate.errors import DecodeError
from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.record import Record, parse_leaf
from sealgate.transparency.reports.counting import DAY_US, Counted, counted, join

# The same text for SQLite and PostgreSQL.
_COUNT = Statement("""
    INSERT INTO day_count AS known (day, kind, key, tenant, actor, model, operation, purpose, reason,
                                    records, counted, units, eps_micro, first_us, last_us)
    VALUES (:day, :kind, :key, :tenant, :actor, :model, :operation, :purpose, :reason,
            :records, :counted, :units, :eps_micro, :first_us, :last_us)
    ON CONFLICT (day, kind, key) DO UPDATE SET
        records = known.records + excluded.records,
        counted = known.counted + excluded.counted,
        units = known.units + excluded.units,
        eps_micro = known.eps_micro + excluded.eps_micro,
        first_us = CASE WHEN excluded.first_us < known.first_us THEN excluded.first_us ELSE known.first_us END,
        last_us = CASE WHEN excluded.last_us > known.last_us THEN excluded.last_us ELSE known.last_us END
""")
_SPAN = Statement("""
    INSERT INTO day_span AS known (day, first_idx, last_idx) VALUES (:day, :first_idx, :last_idx)
    ON CONFLICT (day) DO UPDATE SET
        first_idx = CASE WHEN excluded.first_idx < known.first_idx THEN excluded.first_idx ELSE known.first_idx END,
        last_idx = CASE WHEN excluded.last_idx > known.last_idx THEN excluded.last_idx ELSE known.last_idx END
""")
# What a pruner may: it reads index rows, never leaves.
_GROUPS = text(f"""
    SELECT DISTINCT ts_us / {DAY_US} AS day, kind, tenant, actor, model, purpose, reason FROM record
    WHERE idx >= :first AND idx <= :last
""")  # noqa: S608 - the only insertion is our own integer constant
_NONE_LEFT = text(f"""
    DELETE FROM day_count
    WHERE day = :day AND kind = :kind
      AND NOT EXISTS (
        SELECT 1 FROM record
        WHERE record.actor = day_count.actor
          AND record.idx >= (SELECT first_idx FROM day_span WHERE day_span.day = :day)
          AND record.idx <= (SELECT last_idx FROM day_span WHERE day_span.day = :day)
          AND record.ts_us >= :day * {DAY_US} AND record.ts_us < (:day + 1) * {DAY_US}
          AND record.kind = day_count.kind AND record.tenant = day_count.tenant AND record.model = day_count.model
          AND record.purpose = day_count.purpose AND record.reason = day_count.reason)
""")  # noqa: S608 - likewise


def count_days(connection: Connection, new: Sequence[tuple[int, Record]]) -> None:
    """Add records that are being written."""
    if not new:
        return
    _COUNT.run(connection, _rows(record for _, record in new))
    spans: dict[int, tuple[int, int]] = {}
    for index, record in new:
        day = record.ts_us // DAY_US
        first, last = spans.get(day, (index, index))
        spans[day] = (min(first, index), max(last, index))
    _SPAN.run(connection, [{"day": day, "first_idx": first, "last_idx": last} for day, (first, last) in spans.items()])


def groups_of(connection: Connection, ranges: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """The groups that records between these indices count in; ask before they are deleted."""
    found = {}
    for first, last in ranges:
        for row in connection.execute(_GROUPS, {"first": first, "last": last}).mappings():
            found[tuple(row.values())] = dict(row)
    return list(found.values())


def forget_days(connection: Connection, groups: Sequence[dict[str, Any]]) -> None:
    """Once records are deleted: groups that no record is left of are counted no more. One that has some left (one of
    them is held, say) goes on counting all that were in it."""
    # One statement for a day's kind, one look into the index for each of its groups: who prunes has no group's key.
    days = dict.fromkeys((group["day"], group["kind"]) for group in groups)
    if days:
        connection.execute(_NONE_LEFT, [{"day": day, "kind": kind} for day, kind in days])


def catch_up_days(connection: Connection) -> None:
    """Count what is in the log and not in the roll-ups. Costs nothing where there is nothing to do."""
    counted_to = connection.execute(select(func.max(day_span.c.last_idx))).scalar_one()
    at = -1 if counted_to is None else int(counted_to)
    while True:
        rows = connection.execute(
            select(leaf_table.c.idx, leaf_table.c.leaf)
            .where(leaf_table.c.idx > at)
            .order_by(leaf_table.c.idx)
            .limit(EXPORT_CHUNK_RECORDS)
        ).all()
        if not rows:
            return
        count_days(connection, [(index, _record(index, leaf)) for index, leaf in rows])
        at = rows[-1][0]


def indices_between(connection: Connection, *, from_us: int | None, to_us: int | None, size: int) -> tuple[int, int]:
    """Between which indices the days of a span of time stand, of the first `size` records: (0, -1) if nowhere. Records
    of other times may stand there too."""
    if from_us is None and to_us is None:
        return 0, size - 1
    statement = select(func.min(day_span.c.first_idx), func.max(day_span.c.last_idx))
    if from_us is not None:
        statement = statement.where(day_span.c.day >= from_us // DAY_US)
    if to_us is not None:
        statement = statement.where(day_span.c.day <= (to_us - 1) // DAY_US)
    low, high = connection.execute(statement).one()
    return (0, -1) if low is None else (int(low), min(int(high), size - 1))


def rebuild_days(connection: Connection) -> None:
    """Throw the roll-ups away and count every leaf that is kept."""
    connection.execute(delete(day_count))
    connection.execute(delete(day_span))
    catch_up_days(connection)


def _record(index: int, leaf: bytes) -> Record:
    try:
        return parse_leaf(leaf)
    except DecodeError as error:
        raise LogDamaged(f"record {index} is damaged in the database") from error


def _rows(records: Iterable[Record]) -> list[dict[str, object]]:
    """One row for each day and group."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        names = (record.kind, record.tenant, record.actor, record.model, record.operation, record.purpose)
        groups.setdefault((record.ts_us // DAY_US, *names, record.reason), []).append(record)
    return [_row(alike[0].ts_us // DAY_US, join(*map(counted, alike))) for alike in groups.values()]


def _row(day: int, one: Counted) -> dict[str, object]:
    return {
        "day": day,
        "kind": one.kind,
        "key": hashlib.sha256(canonical_json(one.group)).digest()[:16],
        "tenant": one.tenant,
        "actor": one.actor,
        "model": one.model,
        "operation": one.operation,
        "purpose": one.purpose,
        "reason": one.reason,
        "records": one.records,
        "counted": one.count,
        "units": one.units,
        "eps_micro": one.eps_micro,
        "first_us": one.first_us,
        "last_us": one.last_us,
    }
