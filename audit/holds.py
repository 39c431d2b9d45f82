"""Legal holds: what must be kept until further notice. A hold is a record, and its release another; there is no table.

A hold is over one person (tenant and pseudonym), one tenant, or the whole log (no tenant). It blocks the erasure of
names and the pruning of records. Its name is the `reason` of its records, so that the index alone tells what is held: a
pruner may not read leaves. These records are never pruned.

Index rows can be deleted by whoever can write the database, and what is not found holds nothing. So these records are
chained: the head carries a hash over each in its order, under the writer's seal. Rows that do not lead to it are
damage, not an answer. A log from before there was a chain is read through once, leaf by leaf, when it is opened.

Everything runs in the transaction of its caller. Trusts: the leaves, and the chain in the head; an index row that says
otherwise is damage. Never: holds, releases or deletes without a record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, select, text

from audit.errors import LogDamaged, PrivacyRefused
from audit.limits import EXPORT_CHUNK_RECORDS, MAX_HOLDS
from audit.subjects import Subjects
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from audit.tables import record as record_table
from sealgate.errors import DecodeError
from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.record import Record, parse_leaf

if TYPE_CHECKING:
    from audit.effects import Effect

PLACED, RELEASED = "hold.placed", "hold.released"
HOLD_KINDS = frozenset({PLACED, RELEASED})
NO_HOLDS = bytes(32)
"""The chain of a log that never had a hold."""
PRUNING_LOCK = int.from_bytes(hashlib.sha256(b"sealgate audit log: its pruner").digest()[:8], "big", signed=True)
"""PostgreSQL's advisory lock between a pruner that deletes and a hold that is being placed."""

_TAKE_PRUNING_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")
_ROWS = (
    select(
        record_table.c.idx,
        record_table.c.ts_us,
        record_table.c.kind,
        record_table.c.tenant,
        record_table.c.actor,
        record_table.c.reason,
    )
    .where(record_table.c.kind.in_((PLACED, RELEASED)))
    .order_by(record_table.c.idx)
)
_CHAIN = select(head_table.c.holds)
_KIND_IN_LEAF = b'"kind":"hold.'
_ROWS_AND_LEAVES = _ROWS.add_columns(leaf_table.c.leaf).outerjoin(leaf_table, leaf_table.c.idx == record_table.c.idx)


@dataclass(frozen=True, kw_only=True)
class Hold:
    """One that is in force. `tenant` is "" for the whole log, `actor` for everybody of the tenant."""

    name: str
    tenant: str
    actor: str
    position: int  # of its record, through all shards
    placed_us: int

    def covers(self, *, tenant: str, actor: str) -> bool:
        """Whether it holds what is recorded of this tenant and pseudonym."""
        return self.tenant in ("", tenant) and self.actor in ("", actor)


def holds_in_force(connection: Connection) -> list[Hold]:
    """Every hold that was not released, oldest first. Raises LogDamaged if index and leaves contradict each other."""
    rows = connection.execute(_ROWS_AND_LEAVES).all()
    for row in rows:
        _require_same(row)
    _require_chained(connection, rows)
    return _in_force(rows)


def holds_by_index(connection: Connection) -> list[Hold]:
    """The same for who may not read leaves. Raises LogDamaged if the index hides a hold."""
    rows = connection.execute(_ROWS).all()
    _require_chained(connection, rows)
    return _in_force(rows)


def chained(before: bytes, index: int, record: Record) -> bytes:
    """The chain after this record of a hold; `index` is that of its row."""
    said = [index, record.ts_us, record.kind, record.tenant, record.actor, record.reason]
    return hashlib.sha256(before + hashlib.sha256(canonical_json(said)).digest()).digest()


def chain_of_leaves(connection: Connection) -> bytes:
    """The chain, from every leaf that is kept: all of them are read."""
    chain, at = NO_HOLDS, -1
    while True:
        rows = connection.execute(
            select(leaf_table.c.idx, leaf_table.c.leaf)
            .where(leaf_table.c.idx > at)
            .order_by(leaf_table.c.idx)
            .limit(EXPORT_CHUNK_RECORDS)
        ).all()
        if not rows:
            return chain
        for index, leaf in rows:
            if _KIND_IN_LEAF not in bytes(leaf):  # may stand in a detail too: only the record itself tells
                continue
            record = _parsed(index, leaf)
            if record.kind in HOLD_KINDS:
                chain = chained(chain, index, record)
        at = rows[-1].idx


def blocking(holds: Iterable[Hold], *, tenant: str, actor: str) -> list[Hold]:
    """Those that hold the name behind a pseudonym."""
    return [hold for hold in holds if hold.covers(tenant=tenant, actor=actor)]


def placing(subjects: Subjects, *, name: str, tenant: str, subject: str) -> Effect:
    """The effect of a `hold.placed`. Fails with PrivacyRefused (`hold-exists`, `subject-unknown`,
    `too-many-holds`, `pruning-under-way`)."""

    def place(connection: Connection, draft: Record) -> Record:
        _require_no_pruning(connection)
        holds = holds_in_force(connection)
        if any(hold.name == name for hold in holds):
            raise PrivacyRefused("a hold of this name is in force", code="hold-exists")
        if len(holds) >= MAX_HOLDS:
            raise PrivacyRefused("too many holds are in force", code="too-many-holds")
        actor = require_known(subjects, connection, tenant=tenant, subject=subject) if subject else ""
        return msgspec.structs.replace(draft, kind=PLACED, tenant=tenant, actor=actor, outcome="held", reason=name)

    return place


def releasing(*, name: str) -> Effect:
    """The effect of a `hold.released`. Fails with PrivacyRefused (`hold-unknown`)."""

    def release(connection: Connection, draft: Record) -> Record:
        found = [hold for hold in holds_in_force(connection) if hold.name == name]
        if not found:
            raise PrivacyRefused("no hold of this name is in force", code="hold-unknown")
        return msgspec.structs.replace(
            draft, kind=RELEASED, tenant=found[0].tenant, actor=found[0].actor, outcome="released", reason=name
        )

    return release


def require_known(subjects: Subjects, connection: Connection, *, tenant: str, subject: str) -> str:
    """The pseudonym of a person; raises PrivacyRefused (`subject-unknown`)."""
    ref = subjects.find(connection, tenant, subject)
    if ref is None:
        raise PrivacyRefused("the log knows nobody of this name", code="subject-unknown")
    return ref


def _require_no_pruning(connection: Connection) -> None:
    """Until the transaction ends, no pruner deletes: what it looks at must have this hold in it. Never waits."""
    if connection.dialect.name != "postgresql":
        return  # whoever deletes is the writer itself
    if not connection.execute(_TAKE_PRUNING_LOCK, {"key": PRUNING_LOCK}).scalar_one():
        raise PrivacyRefused("records are being deleted now", code="pruning-under-way")


def _in_force(rows: Iterable[Any]) -> list[Hold]:
    holds: dict[str, Hold] = {}
    for row in rows:
        if row.kind == RELEASED:
            holds.pop(row.reason, None)
        else:
            holds[row.reason] = Hold(
                name=row.reason, tenant=row.tenant, actor=row.actor, position=row.idx, placed_us=row.ts_us
            )
    return list(holds.values())


def _require_chained(connection: Connection, rows: Iterable[Any]) -> None:
    """A head without a chain is one that no writer of this release has opened yet: then the index is all there is."""
    chain = NO_HOLDS
    for row in rows:
        record = Record(kind=row.kind, ts_us=row.ts_us, tenant=row.tenant, actor=row.actor, reason=row.reason)
        chain = chained(chain, row.idx, record)
    sealed = connection.execute(_CHAIN).scalar_one_or_none()
    if sealed is not None and bytes(sealed) != chain:
        raise LogDamaged("the database's index does not have the log's holds as they were recorded")


def _parsed(index: int, leaf: bytes | None) -> Record:
    try:
        return parse_leaf(bytes(leaf or b""))
    except DecodeError as error:
        raise LogDamaged(f"record {index}, of a hold, is damaged in the database") from error


def _require_same(row: Any) -> None:
    record = _parsed(row.idx, row.leaf)
    said = (record.ts_us, record.kind, record.tenant, record.actor, record.reason)
    if said != (row.ts_us, row.kind, row.tenant, row.actor, row.reason):
        raise LogDamaged(f"record {row.idx}, of a hold, is not what the database's index says")
