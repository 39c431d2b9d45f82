"""Reading the log: filtered pages, single records, checkpoints, proofs, tiles, evidence bundles.

Works beside the running writer, from another process, on a connection that cannot write. Records are found in all
shards of the log; what is about a tree (an index, a size, a proof, a checkpoint, a bundle) is about one shard, which is
named by its `origin`: the newest one if it is not named. Answers are leaves, so the
caller can check them: a filter's answer is not proven complete by itself, only a range is (see `export`).
Trusts: the database for what it holds, not for its integrity: that is what proofs against a signed root are for; but a
leaf that is not what its index row says is never an answer.
Never: OFFSET, unbounded pages, unbounded statements.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from audit.activity import Activity, read_activity
from audit.cursor import Cursor, decode_cursor, encode_cursor
from audit.database import open_database
from audit.days import indices_between
from audit.errors import LogDamaged, LogUnavailable, QueryRefused
from audit.export import write_export
from audit.indexing import indexed_size
from audit.limits import DEFAULT_PAGE, INDEX_BEHIND, INDEX_WAIT_S, MAX_PAGE, RETRY_AFTER_S, TILE_HEIGHT, TILE_WIDTH
from audit.line_export import write_lines
from audit.pages import NAMES, RecordFilter, check_filter, find_page
from audit.reports import answer_report
from audit.shards import Shard, Shards, read_shards
from audit.tables import SCHEMA_VERSION
from audit.tables import checkpoint as checkpoint_table
from audit.tables import cosigned as cosigned_table
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from audit.tables import record as record_table
from audit.tree import StoredTree, read_tile
from sealgate.ambient import monotonic_ns
from sealgate.errors import DecodeError
from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.exports.formats import ExportFormat
from sealgate.transparency.merkle import consistency_proof, inclusion_proof
from sealgate.transparency.record import Record, parse_leaf
from sealgate.transparency.reports.form import Report
from sealgate.transparency.reports.question import Question

__all__ = ["AuditReader", "Entry", "Page", "RecordFilter"]

_POLL_S = 0.02
# Apart: who reads by SQL or checks proofs need not be able to make cursors.
_HEAD = select(head_table.c.origin, head_table.c.schema_version, head_table.c.size)
_CURSOR_KEY = select(head_table.c.cursor_key)
_NOT_INDEXED = (
    select(leaf_table.c.idx, leaf_table.c.leaf)
    .where(leaf_table.c.idx >= bindparam("indexed"))
    .order_by(leaf_table.c.idx)
    .limit(INDEX_BEHIND)
)


@dataclass(frozen=True)
class Entry:
    """A leaf, where it stands in the shard that its record names, and what it says."""

    index: int
    leaf: bytes
    record: Record


@dataclass(frozen=True)
class Page:
    """Some answers. `cursor` fetches the next ones (None at the end) of the same snapshot of `tree_size` records, those
    of all shards together. A page may be short, or empty, before the end: see `audit.pages`."""

    records: tuple[Entry, ...]
    cursor: str | None
    tree_size: int


class AuditReader:
    """Reads one log. Safe from several threads. Raises QueryRefused for what cannot be asked, LogUnavailable when the
    database cannot be read now, LogDamaged when what it holds is no log any more."""

    def __init__(self, url: str, *, origin: str) -> None:
        self._database = open_database(url)
        self._engine = self._database.reader_engine()
        self._origin = origin

    def close(self) -> None:
        self._engine.dispose()

    # Records ---------------------------------------------------------------------------------------------------------

    def records(self, wanted: RecordFilter, cursor: str | None = None, limit: int = DEFAULT_PAGE) -> Page:
        """One page, newest first unless the filter says otherwise."""
        if not 0 < limit <= MAX_PAGE:
            raise QueryRefused(f"limit must be from 1 to {MAX_PAGE}", code="limit")
        check_filter(wanted)
        question = hashlib.sha256(canonical_json(wanted)).hexdigest()
        with self._indexed() as (connection, shards):
            size = shards.indexed
            key = connection.execute(_CURSOR_KEY).scalar_one()
            edge: int | None = None
            if cursor is not None:
                at = decode_cursor(cursor, key, question=question)
                size, edge = at.size, at.edge
            first, last = indices_between(connection, from_us=wanted.from_us, to_us=wanted.to_us, size=size)
            rows, far = find_page(connection, wanted, first=first, size=last + 1, edge=edge, limit=limit + 1)
        entries = tuple(_answer(shards, position, leaf, wanted) for position, leaf in rows[:limit])
        more, edge = None, rows[limit - 1][0] if len(rows) > limit else far
        if edge is not None:
            more = encode_cursor(Cursor(size=size, edge=edge, question=question), key)
        return Page(entries, more, size)

    def record(self, identifier: str) -> Entry:
        """The record with this id."""
        if "\0" in identifier:
            raise QueryRefused("no record that is kept has this id or index", code="not-found")
        statement = (
            select(leaf_table.c.idx, leaf_table.c.leaf)
            .join(record_table, record_table.c.idx == leaf_table.c.idx)
            .where(record_table.c.id == identifier)
        )
        with self._snapshot() as (connection, shards):
            row = connection.execute(statement).one_or_none()
            newest = [] if row is not None else connection.execute(_NOT_INDEXED, {"indexed": shards.indexed}).all()
        if row is not None:
            return _entry(shards, row.idx, row.leaf)
        for entry in (_entry(shards, idx, leaf) for idx, leaf in newest):
            if entry.record.id == identifier:
                return entry
        raise QueryRefused("no record that is kept has this id or index", code="not-found")

    def record_at(self, index: int, *, origin: str | None = None) -> Entry:
        """The record at this index of a shard, if it is still kept."""
        with self._snapshot() as (connection, shards):
            shard = shards.named(origin)
            position = shard.first + min(index, shards.size)
            statement = select(leaf_table.c.leaf).where(leaf_table.c.idx == position)
            leaf = connection.execute(statement).scalar_one_or_none()
        if leaf is None or not 0 <= index < shards.size_of(shard):
            raise QueryRefused("no record that is kept has this id or index", code="not-found")
        return _entry(shards, position, leaf)

    def activity(self, wanted: RecordFilter, *, kinds: Sequence[str]) -> Activity | None:
        """How many records of these kinds there were a day: see audit.activity."""
        check_filter(wanted)
        with self._indexed() as (connection, _):
            return read_activity(connection, wanted, kinds=kinds)

    def report(self, name: str, question: Question) -> Report:
        """A report over the whole log, in one snapshot; DecodeError or QueryRefused for what cannot be asked."""
        with self._indexed() as (connection, shards):
            return answer_report(connection, name=name, question=question, shards=shards)

    def usage(self, question: Question) -> Report:
        """The report on usage over however many ends there are: for who reads the database himself."""
        with self._indexed() as (connection, shards):
            return answer_report(connection, name="usage", question=question, shards=shards, most=sys.maxsize)

    # Tree ------------------------------------------------------------------------------------------------------------

    def shards(self) -> Shards:
        """The shards of the log, and where each stands."""
        with self._snapshot() as (_connection, shards):
            return shards

    def size(self, *, origin: str | None = None) -> int:
        """How many durable records a shard has. The newest checkpoint may lag behind by a moment."""
        with self._snapshot() as (_connection, shards):
            return shards.size_of(shards.named(origin))

    def checkpoint(self, *, cosigned: bool = False, origin: str | None = None) -> bytes:
        """A shard's newest signed checkpoint (a note); with `cosigned`, the newest one that witnesses cosigned. Not
        named: the newest there is, which in the moment of a turn is the last one of the shard before."""
        table = cosigned_table if cosigned else checkpoint_table
        with self._snapshot() as (connection, shards):
            newest = select(table.c.note).order_by(table.c.size.desc()).limit(1)
            if origin is not None:
                shard = shards.named(origin)
                newest = newest.where(table.c.size <= shards.end(shard))
                newest = newest.where(table.c.size > shard.first) if shard.number else newest
            note = connection.execute(newest).scalar_one_or_none()
        if note is None and cosigned:
            raise QueryRefused("no checkpoint of this log was cosigned by witnesses", code="not-found")
        if note is None:
            raise LogUnavailable("no checkpoint is published yet", code="not-published", retry_after_s=RETRY_AFTER_S)
        return bytes(note)

    def inclusion(self, index: int, size: int, *, origin: str | None = None) -> list[bytes]:
        """Proof that the record at `index` is in the shard's tree of `size` records."""
        with self._tree(origin) as (connection, shard, newest):
            if not 0 <= index < size <= newest:
                raise QueryRefused("the log has no such index and size", code="range")
            return inclusion_proof(index, size, StoredTree(connection, shard, newest))

    def consistency(self, first: int, second: int, *, origin: str | None = None) -> list[bytes]:
        """Proof that the shard's tree of `second` records extends that of `first`."""
        with self._tree(origin) as (connection, shard, newest):
            if not 0 < first <= second <= newest:
                raise QueryRefused("the log has no such sizes", code="range")
            return consistency_proof(first, second, StoredTree(connection, shard, newest))

    def tile(self, level: int, index: int, width: int = TILE_WIDTH, *, origin: str | None = None) -> bytes:
        """`width` hashes of a C2SP tile, 32 bytes each."""
        with self._tree(origin) as (connection, shard, newest):
            entries = newest >> (TILE_HEIGHT * level) if 0 <= level < 8 else 0
            if not 0 < width <= TILE_WIDTH or index < 0 or (index << TILE_HEIGHT) + width > entries:
                raise QueryRefused("the log has no such tile", code="range")
            return read_tile(connection, shard, level, index, width)

    # Evidence --------------------------------------------------------------------------------------------------------

    def export(
        self, first: int, last: int, out: BinaryIO, *, consistent_with: int | None = None, origin: str | None = None
    ) -> None:
        """Write the evidence bundle of a shard's records first..last: see sealgate.transparency.bundle for its form.

        `consistent_with` is the size of a checkpoint that the auditor kept; the bundle then proves that the shard grew
        out of it. Waits a moment for a signed checkpoint over the range. `out` may have been written to when this
        raises; throw it away then.
        """
        with self._guard():
            write_export(self._engine, first=first, last=last, out=out, consistent_with=consistent_with, origin=origin)

    def export_lines(
        self,
        first: int,
        last: int,
        out: BinaryIO,
        *,
        form: ExportFormat,
        origin: str | None = None,
        kept_only: bool = False,
    ) -> None:
        """Write a shard's records first..last, a line each in the given form, its header before them. A range from
        which records were pruned is refused; with `kept_only` it is written without them.

        Proves nothing; each line is a pure function of its leaf. `out` may have been written to when this raises: what
        whole lines it has are good, and the rest can be asked for from the next record on.
        """
        with self._guard():
            write_lines(self._engine, first=first, last=last, out=out, form=form, origin=origin, kept_only=kept_only)

    # Inside ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[Connection, Shards]]:
        with self._guard(), self._engine.begin() as connection:
            row = connection.execute(_HEAD).one_or_none()
            if row is None or row.origin != self._origin or row.schema_version != SCHEMA_VERSION:
                raise LogUnavailable("the database is not this log's", code="reader", retry_after_s=RETRY_AFTER_S)
            indexed = indexed_size(connection)
            yield connection, read_shards(connection, origin=self._origin, size=row.size, indexed=indexed)

    @contextmanager
    def _indexed(self) -> Iterator[tuple[Connection, Shards]]:
        """A snapshot whose index has what there was when it was asked for: the writer adds that a moment later. Where
        it does not, because it died, the answer is of what the index has."""
        deadline = monotonic_ns() + int(INDEX_WAIT_S * 1e9)
        asked: int | None = None
        while True:
            with self._snapshot() as (connection, shards):
                asked = shards.size if asked is None else asked
                if shards.indexed >= asked or monotonic_ns() > deadline:
                    yield connection, shards
                    return
            time.sleep(_POLL_S)

    @contextmanager
    def _tree(self, origin: str | None) -> Iterator[tuple[Connection, Shard, int]]:
        with self._snapshot() as (connection, shards):
            shard = shards.named(origin)
            yield connection, shard, shards.size_of(shard)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Library errors become LogUnavailable, without their text."""
        try:
            yield
        except DBAPIError as error:
            if self._database.took_too_long(error):
                raise LogUnavailable(
                    "the question takes too long; narrow it", code="reader-busy", retry_after_s=RETRY_AFTER_S
                ) from error
            raise LogUnavailable("the log cannot be read now", code="reader", retry_after_s=RETRY_AFTER_S) from error
        except PoolTimeout as error:
            raise LogUnavailable("too many are reading", code="reader-busy", retry_after_s=RETRY_AFTER_S) from error


def _entry(shards: Shards, position: int, leaf: bytes) -> Entry:
    shard = shards.of(position)
    index = position - shard.first
    try:
        return Entry(index, leaf, parse_leaf(leaf))
    except DecodeError as error:
        raise LogDamaged(f"record {index} of {shard.origin} is damaged in the database") from error


def _answer(shards: Shards, position: int, leaf: bytes, wanted: RecordFilter) -> Entry:
    """An entry that the index found. The leaf itself must match: whoever may write the index, and it alone, must not
    decide which tenant's records somebody reads."""
    entry = _entry(shards, position, leaf)
    matches = all(getattr(wanted, name) in (None, getattr(entry.record, name)) for name in NAMES)
    after = wanted.from_us is None or wanted.from_us <= entry.record.ts_us
    before = wanted.to_us is None or entry.record.ts_us < wanted.to_us
    if not (matches and after and before):
        raise LogDamaged(f"record {entry.index} is not what the database's index says")
    return entry
