"""Rows that wait for a later transaction: who sees what meanwhile, and what is left of them after SIGKILL."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, select

from audit import log as log_module
from audit import query as query_module
from audit.database import open_database
from audit.days import rebuild_days
from audit.errors import AppendRefused, LogDamaged, QueryRefused
from audit.indexing import LATER, Index, indexed_size
from audit.limits import BUSY_REQUESTS, INDEX_BEHIND
from audit.log import AuditLog
from audit.query import RecordFilter
from audit.rows import index_row
from audit.tables import day_count, day_span
from sealgate.transparency.record import KINDS, Record, parse_leaf
from sealgate.transparency.reports.question import Question

NEVER_S = 3600.0
OTHER = Record(kind="audit.query", tenant="clinic")


def busy(bench: Any) -> tuple[AuditLog, list[Record]]:
    """A log with so many requests under way that rows wait from here on, and those requests."""
    log = bench.open()
    bench.start_worker(log)
    begun = [bench.authorize(log).record for _ in range(BUSY_REQUESTS)]
    log.append(OTHER).result()
    return log, begun


@pytest.fixture
def unpublished(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is published meanwhile: that would take the rows along."""
    _publish_never(monkeypatch.setattr)


def _publish_never(put: Any) -> None:
    put(log_module, "PUBLISH_AFTER_S", NEVER_S)
    put(log_module, "PUBLISH_IDLE_S", NEVER_S)


def newest(bench: Any, table: str) -> int:
    return int(bench.sql(f"SELECT max(idx) FROM {table}")[0][0])


def test_few_requests_wait_for_nothing(bench, log, unpublished) -> None:
    for _ in range(BUSY_REQUESTS - 1):
        index = bench.authorize(log).index
        assert newest(bench, "record") == index
    waiting = bench.authorize(log)
    assert newest(bench, "record") == waiting.index - 1


def test_readers_see_the_log_as_far_as_its_index_reaches(bench, unpublished, monkeypatch) -> None:
    """The writer may have died: then nobody writes the rows before the next start, and reading goes on."""
    log, _ = busy(bench)
    waiting = log.append(bench.draft()).result()
    reader = bench.reader()
    monkeypatch.setattr(query_module, "INDEX_WAIT_S", 0.0)
    page = reader.records(RecordFilter())
    assert page.tree_size == page.records[0].index + 1 == waiting.index
    assert reader.report("access", Question()).basis.size == waiting.index
    assert reader.report("completeness", Question()).basis.size == waiting.index + 1 == reader.size()
    assert reader.report("completeness", Question()).findings == ()
    assert reader.record_at(waiting.index).leaf == reader.record(waiting.record.id).leaf == waiting.leaf
    with pytest.raises(QueryRefused, match="no record that is kept"):
        reader.record("018f0000-0000-7000-8000-000000000000")
    reader.close()


def test_readers_wait_for_the_index(bench, unpublished) -> None:
    log, _ = busy(bench)
    waiting = log.append(bench.draft()).result()
    reader = bench.reader()
    with ThreadPoolExecutor() as threads:
        pages = [threads.submit(reader.records, RecordFilter(kind="inference.denied")) for _ in range(2)]
        log.append(OTHER).result()
        assert [page.result().records[0].index for page in pages] == [waiting.index] * 2
    reader.close()


def test_an_idle_writer_writes_the_index(bench) -> None:
    log, _ = busy(bench)
    waiting = log.append(bench.draft()).result()
    reader = bench.reader()
    assert reader.records(RecordFilter()).records[0].index == waiting.index
    reader.close()


def test_an_id_that_waits_is_taken(bench, unpublished) -> None:
    log, _ = busy(bench)
    identifier = "018f0000-0000-7000-8000-000000000001"
    log.append(bench.draft(id=identifier)).result()
    with pytest.raises(AppendRefused, match="taken"):
        log.append(bench.draft(id=identifier)).result()


@pytest.mark.parametrize("kind", ["audit.query", "by an effect"])
def test_nothing_waits_beside_what_is_no_request(bench, unpublished, kind: str) -> None:
    """A record of any other kind takes what waits along; an effect on the database finds it there."""
    log, _ = busy(bench)
    found: list[int] = []

    def counts(connection: Connection, draft: Record) -> Record:
        found.append(indexed_size(connection))
        return draft

    index = log.append(bench.draft()).result().index
    assert newest(bench, "record") == index - 1
    if kind == "by an effect":
        log.append(bench.draft(), counts).result()
        assert found == [index + 1]
        assert newest(bench, "record") == index
    else:
        log.append(OTHER).result()
        assert newest(bench, "record") == index + 1


def test_only_so_many_wait(bench, unpublished) -> None:
    log, _ = busy(bench)
    before = newest(bench, "record")
    for future in [log.append(bench.draft()) for _ in range(INDEX_BEHIND + 50)]:
        future.result()
    assert newest(bench, "record") > before
    assert newest(bench, "leaf") - newest(bench, "record") < INDEX_BEHIND


def test_only_what_requests_leave_waits() -> None:
    for kind in KINDS:
        index = Index(rows=Any)  # type: ignore[arg-type]
        index.take(0, Record(kind=kind))
        assert index.due == (kind not in LATER)
    assert all(kind.startswith("inference.") for kind in LATER)


# After SIGKILL -------------------------------------------------------------------------------------------------------


def killed_behind(bench: Any, *, records: int = 3) -> list[str]:
    """A log whose writer died with rows of requests that began, ended and did both not written; ids acknowledged."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _die_behind(bench, records, write)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        acknowledged = said.read().decode().split()
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert newest(bench, "leaf") - newest(bench, "record") == len(acknowledged)
    return acknowledged


def _die_behind(bench: Any, records: int, pipe: int) -> None:
    _publish_never(setattr)
    log, begun = busy(bench)
    for future in [log.append(bench.draft()) for _ in range(records)]:
        future.result()
    log.append(OTHER).result()
    short = bench.authorize(log)
    done = [short, bench.authorize(log)]
    done += [log.append(bench.end(record)).result() for record in (short.record, begun[0])]
    for one in done:
        os.write(pipe, f"{one.record.id}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_start_writes_the_rows_that_sigkill_cut_off(bench) -> None:
    acknowledged = killed_behind(bench)
    bench.open().close()
    leaves = bench.sql("SELECT idx, leaf FROM leaf ORDER BY idx")
    columns = list(index_row(0, Record()))
    rows = bench.sql(f"SELECT {', '.join(columns)} FROM record ORDER BY idx")
    assert [dict(zip(columns, row, strict=True)) for row in rows] == [
        index_row(index, parse_leaf(bytes(leaf))) for index, leaf in leaves
    ]
    assert set(acknowledged) <= {row[columns.index("id")] for row in rows}
    aborted = bench.sql("SELECT count(*) FROM record WHERE kind = 'inference.aborted'")
    assert aborted == [(BUSY_REQUESTS,)]  # all but one that began before, and one of those whose rows waited
    assert bench.sql("SELECT count(*) FROM open_intent") == [(0,)]
    report = bench.audit()
    assert report.ok, report.lines()
    assert report.steps[5].status == "ok", report.lines()
    assert counted(bench) == counted(bench, anew=True)


def counted(bench: Any, *, anew: bool = False) -> list[Any]:
    hold = open_database(bench.url).open_writer()
    try:
        with hold.engine.connect() as connection, connection.begin() as transaction:
            if anew:
                rebuild_days(connection)
            tables = (day_count, day_span)
            rows = [
                tuple(row)
                for table in tables
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            transaction.rollback()
            return rows
    finally:
        hold.release()


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM record WHERE idx >= 1",  # the worker's start
        "UPDATE leaf SET leaf = CAST(replace(leaf, 'clinic', 'cliniq') AS BLOB) WHERE idx = 5",
        "INSERT INTO open_intent VALUES ('x', 3)",
    ],
)
def test_nothing_else_is_taken_for_the_work_of_a_crash(bench, harm: str) -> None:
    killed_behind(bench)
    bench.sql(harm)
    with pytest.raises(LogDamaged):
        bench.open()


def test_more_rows_than_a_crash_can_cut_off_are_damage(bench) -> None:
    killed_behind(bench, records=INDEX_BEHIND)
    bench.sql("DELETE FROM record WHERE idx >= 3")
    with pytest.raises(LogDamaged, match="head"):
        bench.open()
