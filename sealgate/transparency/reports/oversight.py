"""Those who watch, watched: what operators changed, what auditors read, and which records somebody has looked at.

    break-glass   every administrative and key operation, one by one; auditors' reads, counted by who and what
    review        every statement that somebody looked, and the ranges of records that no such statement covers

Trusts: the records; a review is its auditor's word, put on record under the auditor's own credential. Never: leaves out
an administrative record in silence: what does not fit the table is counted.
"""

from __future__ import annotations

from sealgate.limits import MAX_REPORT_GROUPS
from sealgate.transparency.record import KINDS, Record
from sealgate.transparency.reports.counting import Tally, counted
from sealgate.transparency.reports.form import Answer, Cell, Column, Part, Table
from sealgate.transparency.reports.question import Question

READS = ("audit.query", "audit.export")
_USE = frozenset({"auth.failed", *READS})
ADMINISTRATIVE = tuple(kind for kind in KINDS if kind not in _USE and not kind.startswith("inference."))
"""Everything that is neither use of a model nor reading the log: kinds that come later are in it by themselves."""

REVIEW = "audit.review"
_WHAT = 200  # characters of a detail that a row shows


class BreakGlass:
    """Operators and auditors, as the log saw them."""

    kinds = (*ADMINISTRATIVE, *READS)

    def __init__(self, question: Question) -> None:
        self._question = question
        self._done: list[tuple[Cell, ...]] = []
        self._left_out = 0
        self._reads: dict[tuple[str, str, str, str], Tally] = {}
        self._reads_left_out = 0

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        question = self._question
        if not question.covers_time(record.ts_us) or not question.matches(record):
            return
        if record.kind in READS:
            self._read(record)
        elif record.kind in ADMINISTRATIVE and len(self._done) < MAX_REPORT_GROUPS:
            self._done.append(_operation(index, record))
        elif record.kind in ADMINISTRATIVE:
            self._left_out += 1

    def _read(self, record: Record) -> None:
        key = (record.tenant, record.actor, record.kind, record.detail.get("question", ""))
        tally = self._reads.get(key)
        if tally is None:
            if len(self._reads) >= MAX_REPORT_GROUPS:
                self._reads_left_out += 1
                return
            tally = self._reads[key] = Tally()
        tally.take(counted(record))

    def answer(self, part: Part) -> Answer:
        columns = (
            Column("record", "number"),
            Column("time (UTC)", "time"),
            *(Column(name) for name in ("kind", "reason", "tenant", "by", "about", "detail")),
        )
        done = Table(title="operations", columns=columns, rows=tuple(self._done), left_out=self._left_out)
        columns = (
            *(Column(name) for name in ("tenant", "actor", "kind", "question")),
            Column("count", "number"),
            Column("first (UTC)", "time"),
            Column("last (UTC)", "time"),
        )
        rows = tuple((*key, row.count, row.first_us, row.last_us) for key, row in sorted(self._reads.items()))
        reads = Table(title="reads by auditors", columns=columns, rows=rows, left_out=self._reads_left_out)
        return Answer(
            (done, reads),
            limits=("who reads the database or its files directly leaves no record here",),
        )


def _operation(index: int, record: Record) -> tuple[Cell, ...]:
    by = record.detail.get("by", "") or record.actor
    about = record.model or record.runtime_instance or record.policy_digest
    why = record.reason or record.outcome
    return (index, record.ts_us, record.kind, why, record.tenant, by, about, _what(record.detail))


def _what(detail: dict[str, str]) -> str:
    text = ", ".join(f"{name}={value}" for name, value in detail.items() if value and name != "by")
    return text if len(text) <= _WHAT else text[: _WHAT - 3] + "..."


class Review:
    """What was looked at, and what was not."""

    kinds = (REVIEW,)

    def __init__(self, question: Question) -> None:
        self._question = question
        self._rows: list[tuple[Cell, ...]] = []
        self._left_out = 0
        self._looked_at: list[tuple[int, int]] = []

    def see(self, index: int, record: Record, leaf: bytes) -> None:
        question = self._question
        if record.kind != REVIEW or not (question.covers_time(record.ts_us) and question.matches(record)):
            return
        detail = record.detail
        first, last = (_index(detail.get(name, "")) for name in ("first", "last"))
        if 0 <= first <= last < index:  # nobody can have looked at what came later
            self._looked_at.append((first, last))
        if len(self._rows) >= MAX_REPORT_GROUPS:
            self._left_out += 1
            return
        words = [detail.get(name, "") for name in ("finding", "note", "report", "report_digest", "root")]
        self._rows.append((index, record.ts_us, record.tenant, record.actor, first, last, *words))

    def answer(self, part: Part) -> Answer:
        columns = (
            Column("record", "number"),
            Column("time (UTC)", "time"),
            *(Column(name) for name in ("tenant", "actor")),
            *(Column(name, "number") for name in ("first", "last")),
            *(Column(name) for name in ("finding", "note", "report", "report digest", "root that was seen")),
        )
        reviews = Table(title="reviews", columns=columns, rows=tuple(self._rows), left_out=self._left_out)
        open_ranges = [(first, last, last - first + 1) for first, last in _between(_joined(self._looked_at), part)]
        columns = tuple(Column(name, "number") for name in ("first", "last", "records"))
        unseen = Table(
            title="records that no review covers",
            columns=columns,
            rows=tuple(open_ranges[:MAX_REPORT_GROUPS]),
            left_out=max(0, len(open_ranges) - MAX_REPORT_GROUPS),
        )
        return Answer(
            (reviews, unseen),
            limits=(
                "a review is its auditor's word that somebody looked; the log proves when it was given, and by whom",
            ),
        )


def _index(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else -1


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same indexes as ranges that are in order and apart."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _between(ranges: list[tuple[int, int]], part: Part) -> list[tuple[int, int]]:
    """What is left of first..last without the ranges."""
    left, at = [], part.first
    for first, last in ranges:
        if first > part.last:
            break
        if at < first:
            left.append((at, first - 1))
        at = max(at, last + 1)
    if at <= part.last:
        left.append((at, part.last))
    return left
