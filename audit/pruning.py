"""Deleting records whose time is over. Their hashes stay in the tree, so every proof about other records still holds.

    1. search     candidates, in the order of the index, by their index rows
    2. announce   in the writer's transaction: each candidate's leaf is read, must have its hash in the tree, must be
                  due and not held; a `retention.pruned` record names those that are
    3. delete     leaves and index rows. In SQLite in the same transaction; in PostgreSQL, where the writer may delete
                  no leaf, by the pruner, who judges once more by the index, which the writer cannot change

A crash between 2 and 3 leaves records that may go and are still there: they are found and announced again. The newest
two rows of the newest tree are never pruned: a start re-hashes their leaves. Nor are the records that chain shards: the
last one of each and the first one of the next. An announcement is about records of one shard, and says of which if it
is not its own; what is searched and deleted is found by position.

Trusts: the rules and the clock of its caller. Never: deletes what no durable record announces, or what is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, Engine, bindparam, delete, select, text

from audit.days import forget_days, groups_of
from audit.errors import LogDamaged, PrivacyRefused
from audit.holds import PRUNING_LOCK, Hold, holds_by_index, holds_in_force
from audit.limits import PRUNE_RECORDS, PRUNE_SCAN, PRUNE_TEXT, TILE_HEIGHT, TILE_WIDTH
from audit.retention import DAY_US, Indexed, Retention
from audit.shards import Shard, Shards, read_shards
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from audit.tables import open_intent as intent_table
from audit.tables import record as record_table
from audit.tree import cut, read_tile
from sealgate.errors import DecodeError
from sealgate.transparency.merkle import leaf_hash
from sealgate.transparency.pruned import INDICES, KIND, SHARD, SHORTEST, Indices
from sealgate.transparency.record import Record, parse_leaf

if TYPE_CHECKING:
    from audit.effects import Effect

_INDEXED = select(
    record_table.c.idx,
    record_table.c.ts_us,
    record_table.c.kind,
    record_table.c.tenant,
    record_table.c.actor,
    record_table.c.purpose,
).order_by(record_table.c.idx)
_LEAVES = select(leaf_table.c.idx, leaf_table.c.leaf).order_by(leaf_table.c.idx)
_DELETE_LEAVES, _DELETE_ROWS = (
    delete(table).where(table.c.idx >= bindparam("first"), table.c.idx <= bindparam("last"))
    for table in (leaf_table, record_table)
)
_WAIT_FOR_HOLDS = text("SELECT pg_advisory_xact_lock(:key)")


@dataclass(frozen=True)
class Candidates:
    """What the index says is due, and where to search on; None at the end."""

    records: tuple[Indexed, ...]
    next: int | None


def search(
    connection: Connection, retention: Retention, holds: Sequence[Hold], *, start: int, now_us: int
) -> Candidates:
    """The next candidates from an index on (1)."""
    shards = log_shards(connection)
    stop = _prunable(connection, shards, retention, now_us=now_us)
    edges = shards.edges()
    rows = connection.execute(
        _INDEXED.where(record_table.c.idx >= start, record_table.c.idx < stop).limit(PRUNE_SCAN)
    ).all()
    found: list[Indexed] = []
    length = 0
    for row in rows:
        record = _indexed(row)
        if record.index in edges:
            continue
        if found and shards.of(record.index) != shards.of(found[0].index):
            return Candidates(tuple(found), record.index)
        if not retention.is_due(record, holds=holds, now_us=now_us):
            continue
        # As if no index touched the one before: an index, a hyphen or a space.
        length += 0 if found and record.index == found[-1].index + 1 else 2 * (len(str(record.index)) + 1)
        if len(found) == PRUNE_RECORDS or length > PRUNE_TEXT:
            return Candidates(tuple(found), record.index)
        found.append(record)
    return Candidates(tuple(found), rows[-1].idx + 1 if len(rows) == PRUNE_SCAN else None)


def pruning(candidates: Sequence[Indexed], retention: Retention, *, now_us: int) -> Effect:
    """The effect of a `retention.pruned` (2, and 3 where the writer may). Fails with PrivacyRefused (`nothing-due`) if
    nothing of it is due by the leaves."""
    wanted = {candidate.index for candidate in candidates}

    def prune(connection: Connection, draft: Record) -> Record:
        holds = holds_in_force(connection)
        shards = log_shards(connection)
        due = Indices.of(
            record.index
            for record in _by_leaf(connection, shards, wanted)
            if retention.is_due(record, holds=holds, now_us=now_us)
        )
        if not due.count:
            raise PrivacyRefused("nothing is due", code="nothing-due")
        if deletes_itself(connection):
            _delete(connection, due)
        shard = shards.of(due.ranges[0][0])
        said = ({} if shard.origin == draft.log else {SHARD: shard.origin}) | {
            INDICES: str(due.moved(-shard.first)),
            "count": str(due.count),
            SHORTEST: str(retention.shortest_days * DAY_US),
            "rules": retention.digest,
        }
        return msgspec.structs.replace(draft, kind=KIND, outcome="pruned", detail=draft.detail | said)

    return prune


def deletes_itself(connection: Connection) -> bool:
    """Whether the log's writer deletes what it announces; else a pruner does."""
    return connection.dialect.name == "sqlite"


def announced(connection: Connection, record: Record) -> Indices:
    """The positions of the records that a `retention.pruned` names. Raises QueryRefused for a shard that is not one."""
    shard = log_shards(connection).named(record.detail.get(SHARD, record.log))
    return Indices.parse(record.detail[INDICES]).moved(shard.first)


def delete_announced(engine: Engine, indices: Indices, retention: Retention, *, now_us: int) -> None:
    """What a pruner does with an announcement (3), by positions. Raises PrivacyRefused (`not-due`) and deletes nothing
    if, by the index and these rules, something of it must be kept: a hold may have been placed since.

    No hold is placed meanwhile: see `audit.holds.placing`.
    """
    with engine.begin() as connection:
        connection.execute(_WAIT_FOR_HOLDS, {"key": PRUNING_LOCK})
        holds = holds_by_index(connection)
        first, last = indices.ranges[0][0], indices.ranges[-1][1]
        rows = connection.execute(_INDEXED.where(record_table.c.idx >= first, record_table.c.idx <= last))
        for row in rows:
            if row.idx in indices and not retention.is_due(_indexed(row), holds=holds, now_us=now_us):
                raise PrivacyRefused(f"record {row.idx} must be kept", code="not-due")
        _delete(connection, indices)


def log_shards(connection: Connection) -> Shards:
    """Of the log in this database, whatever its name."""
    """The shards of the log in this database, whatever its name."""
    head = connection.execute(select(head_table.c.origin, head_table.c.size)).one_or_none()
    return read_shards(connection, origin=head.origin if head else "", size=head.size if head else 0)


def _prunable(connection: Connection, shards: Shards, retention: Retention, *, now_us: int) -> int:
    """No record from this position on is pruned: too young by every rule, or needed by the next start."""
    shard = shards.newest
    rows = max(0, (shards.size_of(shard) >> TILE_HEIGHT) - 1)
    newest = connection.execute(
        select(record_table.c.idx)
        .where(record_table.c.ts_us <= now_us - retention.shortest_days * DAY_US)
        .order_by(record_table.c.ts_us.desc())
        .limit(1)
    ).scalar_one_or_none()
    return min(shard.first + (rows << TILE_HEIGHT), -1 if newest is None else newest + 1)


def _by_leaf(connection: Connection, shards: Shards, wanted: set[int]) -> Iterable[Indexed]:
    """What the leaves say of these records; LogDamaged for one that is not what the tree was built from: deleting it
    would hide that somebody changed it."""
    first, last = min(wanted), max(wanted)
    begun = set(connection.execute(select(intent_table.c.idx).where(intent_table.c.idx <= last)).scalars())
    rows = connection.execute(_LEAVES.where(leaf_table.c.idx >= first, leaf_table.c.idx <= last))
    hashes: dict[tuple[Shard, int], list[bytes]] = {}
    for index, leaf in rows:
        if index not in wanted or index in begun:
            continue
        shard = shards.of(index)
        row = (index - shard.first) >> TILE_HEIGHT
        if (shard, row) not in hashes:
            width = min(TILE_WIDTH, shards.size_of(shard) - (row << TILE_HEIGHT))
            hashes = {(shard, row): cut(read_tile(connection, shard, 0, row, width))}
        try:
            record = parse_leaf(bytes(leaf))
        except DecodeError as error:
            raise LogDamaged(f"record {index} is damaged in the database") from error
        if leaf_hash(bytes(leaf)) != hashes[shard, row][(index - shard.first) % TILE_WIDTH]:
            raise LogDamaged(f"record {index} is not the one that is in the tree")
        yield Indexed(
            index=index,
            ts_us=record.ts_us,
            kind=record.kind,
            tenant=record.tenant,
            actor=record.actor,
            purpose=record.purpose,
        )


def _delete(connection: Connection, indices: Indices) -> None:
    parts = [{"first": first, "last": last} for first, last in indices.ranges]
    groups = groups_of(connection, [(indices.ranges[0][0], indices.ranges[-1][1])])
    connection.execute(_DELETE_LEAVES, parts)
    connection.execute(_DELETE_ROWS, parts)
    # Of the newest day more will be due a moment later: it is looked through once that is over, not for every page.
    newest = max((group["day"] for group in groups), default=0)
    forget_days(connection, [group for group in groups if group["day"] < newest])


def _indexed(row: Any) -> Indexed:
    return Indexed(
        index=row.idx, ts_us=row.ts_us, kind=row.kind, tenant=row.tenant, actor=row.actor, purpose=row.purpose
    )
