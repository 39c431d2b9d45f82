"""What `benchmarks.audit_queries` asks of a log, by name, and how databases say by which index they answered.

Every question is asked as the gateway asks it, through `AuditReader`; statements are overheard, not written again here.
Trusts: the statistics of PostgreSQL, the plans of SQLite. Never: writes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from sqlalchemy import Engine, event, select

from audit.cursor import Cursor, encode_cursor
from audit.database import open_database
from audit.query import AuditReader, RecordFilter
from audit.tables import head as head_table
from benchmarks.audit_mix import DAY_US, START_US, digest_of
from sealgate.protocol.canonical import canonical_json
from sealgate.transparency.exports.formats import FORMATS
from sealgate.transparency.reports.question import Question

Ask = Callable[[], object]
EXPORTED = 20_000
_ABSENT = "0" * 32
_SPANS = ("denials", "access", "budget", "break-glass", "review")


def filters(size: int, days: int, actor: str) -> dict[str, RecordFilter]:
    """Each filter alone, those that auditors put together, and names that no record has."""
    middle = START_US + days // 2 * DAY_US
    span = {"from_us": middle, "to_us": middle + DAY_US}
    wanted: dict[str, dict[str, Any]] = {
        "everything": {},
        "everything, oldest first": {"oldest_first": True},
        "tenant": {"tenant": "lab"},
        "actor": {"actor": actor},
        "model": {"model": "risk"},
        "model_digest": {"model_digest": digest_of("triage")},
        "purpose": {"purpose": "care"},
        "kind, common": {"kind": "inference.completed"},
        "kind, rare": {"kind": "policy.change"},
        "outcome": {"outcome": "failed"},
        "reason": {"reason": "privacy-budget-exhausted"},
        "a day": span,
        "a day, oldest first": {**span, "oldest_first": True},
        "the first day": {"to_us": START_US + DAY_US},
        "after the newest": {"from_us": START_US + 10_000 * DAY_US},
        "tenant, a day": {"tenant": "lab", **span},
        "tenant, the first day": {"tenant": "lab", "to_us": START_US + DAY_US},
        "actor, a day": {"actor": actor, **span},
        "kind, a day": {"kind": "inference.denied", **span},
        "tenant, kind": {"tenant": "lab", "kind": "inference.denied"},
        "tenant, rare kind": {"tenant": "clinic", "kind": "audit.review"},
        "tenant, kind it has none of": {"tenant": "lab", "kind": "policy.change"},
        "actor, model, purpose": {"actor": actor, "model": "summary", "purpose": "care"},
        "tenant, another's actor": {"tenant": "lab", "actor": actor},
        "actor, none such": {"actor": _ABSENT},
        "reason, none such": {"reason": "no-such-reason"},
        "purpose, none such": {"purpose": "no-such-purpose"},
        "outcome, none such": {"outcome": "no-such-outcome"},
        "model_digest, none such": {"model_digest": _ABSENT},
        "tenant, reason none such": {"tenant": "lab", "reason": "no-such-reason"},
    }
    return {name: RecordFilter(**fields) for name, fields in wanted.items()}


def pages(reader: AuditReader, url: str, size: int, days: int, actor: str) -> Iterator[tuple[str, Ask]]:
    """The first page of every filter, and one from the middle of the log."""
    for name, wanted in filters(size, days, actor).items():
        cursor = _cursor(url, wanted, size=size, edge=size // 2)
        yield f"page: {name}", lambda wanted=wanted: reader.records(wanted).records  # type: ignore[misc]
        yield (
            f"deep page: {name}",
            lambda wanted=wanted, cursor=cursor: reader.records(wanted, cursor).records,  # type: ignore[misc]
        )


def _cursor(url: str, wanted: RecordFilter, *, size: int, edge: int) -> str:
    """As if somebody had paged there."""
    engine = open_database(url).reader_engine()
    with engine.begin() as connection:
        key = connection.execute(select(head_table.c.cursor_key)).scalar_one()
    engine.dispose()
    question = hashlib.sha256(canonical_json(wanted)).hexdigest()
    return encode_cursor(Cursor(size=size, edge=edge, question=question), bytes(key))


def single(reader: AuditReader, size: int) -> Iterator[tuple[str, Ask]]:
    """Records and proofs."""
    middle = size // 2
    identifier = reader.record_at(middle).record.id
    yield "record by id", lambda: reader.record(identifier)
    yield "record by index", lambda: reader.record_at(middle)
    yield "checkpoint", reader.checkpoint
    yield "inclusion proof", lambda: reader.inclusion(middle, size)
    yield "consistency proof", lambda: reader.consistency(middle + 1, size)
    yield "tile", lambda: reader.tile(0, middle >> 8)


def reports(reader: AuditReader, size: int, days: int) -> Iterator[tuple[str, Ask]]:
    """Every report over a day, over twelve hours and twelve (two days are cut), over thirty days, over everything."""
    start = START_US + max(0, days // 2 - 15) * DAY_US
    spans = {
        "a day": (start, start + DAY_US),
        "parts of two days": (start + DAY_US // 2, start + 3 * DAY_US // 2),
        "30 days": (start, start + 30 * DAY_US),
        "everything": (None, None),
    }
    for name in _SPANS:
        for span, (low, high) in spans.items():
            yield f"report: {name}, {span}", _report(reader, name, Question(from_us=low, to_us=high))
    yield "report: access, one tenant, everything", _report(reader, "access", Question(tenant="lab"))
    yield "report: in-force, now", _report(reader, "in-force", Question())
    yield "report: in-force, half-way", _report(reader, "in-force", Question(at_us=START_US + days // 2 * DAY_US))
    yield "report: reconcile, newest 50,000", _report(reader, "reconcile", Question())
    yield "report: completeness, newest 50,000", _report(reader, "completeness", Question())


def _report(reader: AuditReader, name: str, question: Question) -> Ask:
    return lambda: reader.report(name, question)


def exports(reader: AuditReader, size: int) -> Iterator[tuple[str, Ask]]:
    """A run of records from the middle, in every form."""
    first = size // 2
    last = min(size, first + EXPORTED) - 1
    for name, form in FORMATS.items():
        yield (
            f"export: {name}, {last - first + 1:,}",
            lambda form=form: reader.export_lines(first, last, io.BytesIO(), form=form),  # type: ignore[misc]
        )
    yield f"export: bundle, {last - first + 1:,}", lambda: reader.export(first, last, io.BytesIO())


# Plans ----------------------------------------------------------------------------------------------------------------


@contextmanager
def heard() -> Iterator[list[tuple[str, Any]]]:
    """What is executed meanwhile."""
    said: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith("SELECT") and (statement, parameters) not in said:
            said.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def indexes(url: str, said: list[tuple[str, Any]]) -> str:
    """By which indexes the tables that grow are found; SCAN where by none."""
    engine = open_database(url).reader_engine()
    found: dict[str, None] = {}
    with engine.begin() as connection:
        for statement, parameters in {text: (text, values) for text, values in said}.values():
            if not re.search(r"\b(record|leaf|day_count|tile)\b", statement):
                continue
            prefix = "EXPLAIN QUERY PLAN" if url.startswith("sqlite") else "EXPLAIN"
            rows = connection.exec_driver_sql(f"{prefix} {statement}", parameters).all()
            for text in (str(row[-1]) for row in rows):
                for index in _named(text):
                    found[index] = None
    engine.dispose()
    return ", ".join(found)


def _named(line: str) -> Iterator[str]:
    tables = r"(record|leaf|day_count|tile)\b"
    if hit := re.match(rf"SEARCH {tables} USING (?:COVERING )?INDEX (\w+)", line):
        yield f"{hit[1]}_pkey" if hit[2].startswith("sqlite_autoindex") else hit[2]
    elif hit := re.match(rf"SEARCH {tables} USING (?:INTEGER )?PRIMARY KEY", line):
        yield f"{hit[1]}_pkey"
    elif hit := re.match(rf"SCAN {tables}(?: USING (?:COVERING )?INDEX (\w+))?", line):
        yield f"SCAN {hit[1]}" + (f" along {hit[2]}" if hit[2] else "")
    elif hit := re.search(rf"Seq Scan on {tables}", line):
        yield f"SCAN {hit[1]}"
    elif hit := re.search(r"(?:Index (?:Only )?Scan(?: Backward)? using|Bitmap Index Scan on) (\w+)", line):
        yield hit[1]
    if "TEMP B-TREE FOR ORDER" in line or re.search(r"-> +(Incremental )?Sort|^(Incremental )?Sort", line):
        yield "SORT"


def weight(answer: object) -> int:
    """How many rows or bytes an answer has, for the table."""
    if isinstance(answer, tuple | list):
        return len(answer)
    tables = getattr(answer, "tables", None)
    if tables is not None:
        return sum(len(table.rows) for table in tables)
    return len(msgspec.json.encode(answer)) if isinstance(answer, bytes) else 1
