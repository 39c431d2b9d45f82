"""Reports over the database: the same folds as over a bundle, shown what the database's indexes find for them.

    counts     access, denials, the spending of budget: day roll-ups for whole days, leaves by kind for the edges
    sums       usage: the ends between the days that were asked for, of all shards
    lists      break-glass, review: leaves by kind, between the indices of the days that were asked for
    moments    in-force: the newest policy and opening until then, and what followed the opening
    ranges     reconcile, completeness, the replay of budget: every leaf between two indices

Counts are over all shards of a log. Lists look at each shard and say in their titles of which one they are, for the
numbers of records are those of its tree; where there is too much to list, they are of the newest and say from where on.
A moment is answered from the shard that had begun by then, which says again what was in force; ranges are of one shard,
the newest if none is named.

One snapshot for all of a report. What is not evidence says so: the answer is the database's word, a bundle's is proven.
Trusts: the database; a leaf that is not of the kind under which its index row stood is an error. Never: scans `record`
or `leaf`, reads more than MAX_REPORT_RECORDS leaves, or answers for part of what was asked without saying so.
Long, because every report asks the same snapshot in its own way, and how each does stands side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, func, select

from audit.by_kind import TOO_MANY, Seen, checked_record, kind_statement, listed, newest_listed
from audit.days import indices_between
from audit.errors import QueryRefused
from audit.limits import EXPORT_CHUNK_RECORDS, MAX_REPORT_DAY_GROUPS, MAX_REPORT_RECORDS
from audit.shards import Shard, Shards
from audit.tables import day_count, day_span
from audit.tables import head as head_table
from audit.tables import leaf as leaf_table
from audit.tables import record as record_table
from audit.tree import StoredTree
from sealgate.errors import LogError
from sealgate.transparency.carried import KIND as CARRIED
from sealgate.transparency.carried import PREVIOUS_ROOT, restated
from sealgate.transparency.merkle import leaf_hash
from sealgate.transparency.ranges import range_proof, range_root
from sealgate.transparency.reports import in_force
from sealgate.transparency.reports.access import Counts
from sealgate.transparency.reports.budget import GRANTS, Budget
from sealgate.transparency.reports.catalogue import require_report
from sealgate.transparency.reports.counting import DAY_US, Counted
from sealgate.transparency.reports.form import Answer, Basis, Fold, Part, Report
from sealgate.transparency.reports.oversight import ADMINISTRATIVE, READS, BreakGlass, Review
from sealgate.transparency.reports.question import FILTERS, Question
from sealgate.transparency.reports.usage import Usage

_ROLLED_UP = "whole days were added up from the database's roll-ups, which are not evidence"
_EACH_SHARD = "a table is of the shard that its title names, and its numbers of records are those of that shard's tree"
_NAMES = (*FILTERS, "operation", "reason")


def answer_report(
    connection: Connection, *, name: str, question: Question, shards: Shards, most: int = MAX_REPORT_RECORDS
) -> Report:
    """The answer in the connection's snapshot. Raises DecodeError or QueryRefused for what cannot be asked. `most` is
    how many ends a report on usage may read: an operator's own reading need not be as short as a service's."""
    kind = require_report(name, question)
    fold = kind.begin(question)
    if isinstance(fold, BreakGlass | Review | Budget | Usage | Counts | in_force.InForce):  # others read leaves alone
        shards = shards.as_indexed()
    if question.shard is not None:
        shard = shards.named(question.shard)
    else:
        shard = _in_force_at(connection, shards, question) if isinstance(fold, in_force.InForce) else shards.newest
    size = shards.size_of(shard)
    first, last, root, limits = 0, size - 1, "", []
    findings: tuple[str, ...] = ()
    place = _Place(connection, shards, shard)
    if isinstance(fold, BreakGlass | Review):
        answer = _listed_by_shard(connection, shards, lambda: kind.begin(question), question)
        limits = [_EACH_SHARD] if len(shards.all) > 1 else []
    else:
        if isinstance(fold, Budget):
            first, last = _newest_range(size)
            _show_budget(place, fold, question, first=first, last=last)
            limits = [
                _ROLLED_UP,
                f"budgets were replayed over records {first} to {last} of {shard.origin}; policies and grants are "
                "those of this shard, which says again what was in force when it began; spending is of the whole log",
            ]
        elif isinstance(fold, Usage):
            low, high = _indices(connection, question, size=shards.size)
            for position, record, leaf in listed(connection, fold.kinds, low=low, high=high, most=most):
                fold.see(position, record, leaf)
        elif isinstance(fold, Counts):
            _count(connection, fold, question)
            limits = [_ROLLED_UP]
        elif isinstance(fold, in_force.InForce):
            _show(place, fold, _until(place, question))
        else:
            first, last = _range(question, size=size)
            root, findings, limits = _show_range(place, fold, first=first, last=last, size=size)
        answer = fold.answer(Part(first, last, whole=False, size=size))
    return Report(
        name=name,
        question=question.given(),
        basis=Basis(source="database", origin=shard.origin, first=first, last=last, size=size, root=root),
        tables=answer.tables,
        findings=(*answer.findings, *findings),
        limits=(*answer.limits, *limits),
    )


@dataclass(frozen=True)
class _Place:
    """One shard in a snapshot. Statements speak of positions, folds and people of indices in the shard's tree."""

    connection: Connection
    shards: Shards
    shard: Shard

    @property
    def end(self) -> int:
        return self.shards.end(self.shard)


def _show(place: _Place, fold: Fold, seen: Iterable[Seen]) -> None:
    for position, record, leaf in seen:
        fold.see(position - place.shard.first, record, leaf)


# Counts ---------------------------------------------------------------------------------------------------------------


def _count(connection: Connection, fold: Counts, question: Question) -> None:
    """Whole days from the roll-ups; the days that the span cuts from the leaves."""
    newest = connection.execute(select(func.max(day_span.c.day))).scalar_one()
    if newest is None:
        return
    low = 0 if question.from_us is None else -(-question.from_us // DAY_US)
    high = newest if question.to_us is None else min(newest, question.to_us // DAY_US - 1)
    rows = connection.execute(groups_statement(fold.kinds, question, low=low, high=high)).all()
    if len(rows) > MAX_REPORT_DAY_GROUPS:
        raise QueryRefused("the answer has too many groups; narrow it, or ask a bundle", code="range")
    for row in rows:
        fold.take(_counted(row))
    for day in sorted({moment // DAY_US for moment in _edges(question)}):
        if not low <= day <= high:
            for position, record, leaf in _of_day(connection, fold.kinds, day):
                fold.see(position, record, leaf)


def _edges(question: Question) -> list[int]:
    """The first and the last moment of the span."""
    first = [] if question.from_us is None else [question.from_us]
    return first if question.to_us is None else [*first, question.to_us - 1]


def _counted(row: Row[Any]) -> Counted:
    """A sum is a whole number, whatever type the database gives it."""
    fields = {str(name): value if isinstance(value, str) else int(value) for name, value in row._asdict().items()}
    return msgspec.convert(fields, Counted)


def groups_statement(kinds: Sequence[str], question: Question, *, low: int, high: int) -> Select[tuple[object, ...]]:
    """The one statement behind counts: groups of the days low..high.

    Groups are told apart by the digest of their names, and only then named: what is sorted is short.
    """
    table = day_count
    sums = select(
        table.c.kind,
        table.c.key,
        func.min(table.c.day).label("day"),
        func.sum(table.c.records).label("records"),
        func.sum(table.c.counted).label("count"),
        func.sum(table.c.units).label("units"),
        func.sum(table.c.eps_micro).label("eps_micro"),
        func.min(table.c.first_us).label("first_us"),
        func.max(table.c.last_us).label("last_us"),
    ).where(table.c.day >= low, table.c.day <= high, table.c.kind.in_(list(kinds)))
    for name in FILTERS:
        if (value := getattr(question, name)) is not None:
            sums = sums.where(table.c[name] == value)
    found = sums.group_by(table.c.kind, table.c.key).limit(MAX_REPORT_DAY_GROUPS + 1).subquery("sums")
    summed = (found.c[name] for name in ("records", "count", "units", "eps_micro", "first_us", "last_us"))
    named = (table.c.day == found.c.day) & (table.c.kind == found.c.kind) & (table.c.key == found.c.key)
    return select(table.c.kind, *(table.c[name] for name in _NAMES), *summed).select_from(found.join(table, named))


def _of_day(connection: Connection, kinds: Sequence[str], day: int) -> Iterator[Seen]:
    span = connection.execute(select(day_span).where(day_span.c.day == day)).one_or_none()
    if span is None:
        return
    for index, record, leaf in listed(connection, kinds, low=span.first_idx, high=span.last_idx):
        if record.ts_us // DAY_US == day:
            yield index, record, leaf


# Lists ----------------------------------------------------------------------------------------------------------------


def _listed_by_shard(connection: Connection, shards: Shards, begin: Callable[[], Fold], question: Question) -> Answer:
    """A fold for each shard in which records of the span stand, the newest alone if none does."""
    low, high = _indices(connection, question, size=shards.size)
    asked = [shards.named(question.shard)] if question.shard is not None else shards.all
    places = [_Place(connection, shards, shard) for shard in asked]
    found = [place for place in places if place.shard.first <= high and place.end > low] or places[-1:]
    answers: list[tuple[Shard, Answer]] = []
    cuts: list[str] = []
    for place in found:
        fold = begin()
        assert isinstance(fold, BreakGlass | Review)
        first, last = max(low, place.shard.first), min(high, place.end - 1)
        if isinstance(fold, BreakGlass):
            cuts += _show_newest(place, fold, low=first, high=last)
        else:  # which ranges nobody looked at is told from all of them
            _show(place, fold, listed(connection, fold.kinds, low=first, high=last))
        size = shards.size_of(place.shard)
        answers.append((place.shard, fold.answer(Part(0, size - 1, whole=False, size=size))))
    tables = [
        msgspec.structs.replace(table, title=f"{table.title} ({shard.origin})") if len(shards.all) > 1 else table
        for shard, answer in answers
        for table in answer.tables
    ]
    return Answer(
        tuple(tables),
        findings=tuple(text for _, answer in answers for text in answer.findings),
        limits=tuple(dict.fromkeys([*(text for _, answer in answers for text in answer.limits), *cuts])),
    )


def _show_newest(place: _Place, fold: BreakGlass, *, low: int, high: int) -> Iterator[str]:
    """Operations and reads, the newest MAX_REPORT_LISTED of each: auditors who read much must not hide what operators
    did. Says from which record on they were looked at, if not all were."""
    seen: list[Seen] = []
    for what, kinds in (("operations", ADMINISTRATIVE), ("reads", READS)):
        newest, cut = newest_listed(place.connection, kinds, low=low, high=high)
        if cut is not None:
            at = cut - place.shard.first
            yield f"of {what} only the newest {len(newest)} are here, from record {at} of {place.shard.origin} on"
        seen += newest
    _show(place, fold, sorted(seen, key=lambda one: one[0]))


def _indices(connection: Connection, question: Question, *, size: int) -> tuple[int, int]:
    """Where the days of the span stand; the fold looks at each record's time itself."""
    return indices_between(connection, from_us=question.from_us, to_us=question.to_us, size=size)


# Moments --------------------------------------------------------------------------------------------------------------


def _in_force_at(connection: Connection, shards: Shards, question: Question) -> Shard:
    """The newest shard that had begun by the moment; the first one if none had."""
    if question.at_us is None:
        return shards.newest
    for shard in reversed(shards.all[1:]):
        began = connection.execute(select(record_table.c.ts_us).where(record_table.c.idx == shard.first)).scalar_one()
        if began <= question.at_us:
            return shard
    return shards.all[0]


def _until(place: _Place, question: Question) -> Iterator[Seen]:
    """What the shard began with, the newest policy until the moment; the newest opening, and what came after it until
    then."""
    connection, low, high = place.connection, place.shard.first, place.end - 1
    if question.at_us is not None:
        until = Question(to_us=question.at_us + 1)
        high = min(high, _indices(connection, until, size=place.end)[1])
    policy = _newest_of(connection, "policy.change", question.at_us, low=low, high=high)
    opened = _newest_of(connection, "log.opened", question.at_us, low=low, high=high)
    begun = opened[0] if opened is not None else low
    if place.shard.number:
        yield from listed(connection, (CARRIED,), low=low, high=begun - 1)
    if policy is not None and policy[0] < begun:
        yield policy
    yield from listed(connection, in_force.KINDS, low=begun, high=high)


def _newest_of(connection: Connection, kind: str, at_us: int | None, *, low: int, high: int) -> Seen | None:
    read = 0
    while high >= low:
        rows = connection.execute(kind_statement(kind, low=low, high=high, newest=True)).all()
        for index, leaf in sorted(((row.idx, bytes(row.leaf)) for row in rows), reverse=True):
            record = checked_record(index, leaf, kind)
            if at_us is None or record.ts_us <= at_us:
                return index, record, leaf
        read += len(rows)
        if read >= MAX_REPORT_RECORDS:
            raise QueryRefused(TOO_MANY, code="range")
        high = min((row.idx for row in rows), default=low) - 1
    return None


# Ranges ---------------------------------------------------------------------------------------------------------------


def _newest_range(size: int) -> tuple[int, int]:
    return max(0, size - MAX_REPORT_RECORDS), size - 1


def _range(question: Question, *, size: int) -> tuple[int, int]:
    """What was asked for, or the newest records; raises QueryRefused for what is not there or too much."""
    last = size - 1 if question.last is None else question.last
    first = max(0, last - MAX_REPORT_RECORDS + 1) if question.first is None else question.first
    if not 0 <= first <= last < size:
        raise QueryRefused(f"the log holds records 0 to {size - 1}; ask for a range of these", code="range")
    if last - first >= MAX_REPORT_RECORDS:
        raise QueryRefused(TOO_MANY, code="range")
    return first, last


def _leaves(place: _Place, *, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """Records first..last of the shard, by their index."""
    base = place.shard.first
    for start in range(base + first, base + last + 1, EXPORT_CHUNK_RECORDS):
        stop = min(start + EXPORT_CHUNK_RECORDS, base + last + 1)
        rows = place.connection.execute(
            select(leaf_table.c.idx, leaf_table.c.leaf)
            .where(leaf_table.c.idx >= start, leaf_table.c.idx < stop)
            .order_by(leaf_table.c.idx)
        ).all()
        yield from ((row.idx - base, bytes(row.leaf)) for row in rows)


def _show_range(
    place: _Place, fold: Fold, *, first: int, last: int, size: int
) -> tuple[str, tuple[str, ...], list[str]]:
    """Show every leaf; give the root that the database names, and whether the leaves lead to it."""
    hashes: list[bytes] = []
    for index, leaf in _leaves(place, first=first, last=last):
        hashes.append(leaf_hash(leaf))
        fold.see(index, checked_record(index, leaf), leaf)
    root = _root(place)
    missing = last - first + 1 - len(hashes)
    if missing:
        return root.hex(), (), [f"{missing} records of the range are no longer kept; a bundle says which"]
    try:
        proof = range_proof(first, last, size, StoredTree(place.connection, place.shard, size))
        leads_to = range_root(first, last, size, iter(hashes), proof)
    except LogError:
        leads_to = b""
    wrong = () if leads_to == root else ("the leaves do not lead to the root of the log",)
    return root.hex(), wrong, []


def _root(place: _Place) -> bytes:
    """What the database says the root is: the head's, or what the next shard's first record says."""
    if place.shard == place.shards.newest:
        return bytes(place.connection.execute(select(head_table.c.root)).scalar_one())
    leaf = place.connection.execute(select(leaf_table.c.leaf).where(leaf_table.c.idx == place.end)).scalar_one_or_none()
    said = "" if leaf is None else checked_record(place.end, bytes(leaf)).detail.get(PREVIOUS_ROOT, "")
    try:
        return bytes.fromhex(said)
    except ValueError:
        return b""


def _show_budget(place: _Place, fold: Budget, question: Question, *, first: int, last: int) -> None:
    connection, base = place.connection, place.shard.first
    _count(connection, fold, question)
    for position, record, _ in listed(connection, (*GRANTS, CARRIED), low=base, high=base + first - 1):
        if (said := restated(record)).kind in GRANTS:
            fold.grant(position - base, said)
    for index, leaf in _leaves(place, first=first, last=last):
        fold.replay(index, checked_record(index, leaf), leaf)
