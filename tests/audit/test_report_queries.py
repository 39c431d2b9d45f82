"""Reports over the database against the same folds over the leaves, and the plans of everything that they ask."""

from __future__ import annotations

import io
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.engine import Engine

from audit import by_kind, reports
from audit.errors import LogDamaged, QueryRefused
from sealgate.errors import DecodeError
from sealgate.transparency.record import Record
from sealgate.transparency.reports.bundles import report_from_bundle
from sealgate.transparency.reports.catalogue import REPORTS
from sealgate.transparency.reports.counting import DAY_US
from sealgate.transparency.reports.form import Report
from sealgate.transparency.reports.question import Question
from sealgate.transparency.verifier import LogTrust
from tests.audit.conftest import ORIGIN

NOON = 20_000 * DAY_US + DAY_US // 2
LEFT = {"privacy_budget": "patients"}
HOST = (
    {"kind": "policy.change", "policy_digest": "p1", "detail": {"name": "clinic", "version": "1"}},
    {"kind": "worker.start", "runtime_instance": "w1", "detail": {"profile": "strict"}},
    {"kind": "model.load", "runtime_instance": "w1", "model": "m", "eps_micro": 5},
    {"kind": "key.rotate", "runtime_instance": "w1", "detail": {"key_ids": "1 2"}},
)


def fill(bench: Any) -> Any:
    """Half a dozen days of use, twice opened; on one of them the clock ran back."""
    left = 1_000_000
    for part in range(2):
        log = bench.open()
        moment = NOON + part * 2 * DAY_US
        for fields in HOST:
            log.append(Record(ts_us=moment, **fields)).result()  # type: ignore[arg-type]
        for number in range(40):
            moment += DAY_US // 17 * (-1 if number == 20 else 1)
            who = {"tenant": "ab"[number % 2], "actor": "xyz"[number % 3], "model": "mn"[number % 2], "purpose": "care"}
            noise = {"eps_micro": 10, "budget_after_micro": left - 10, "detail": LEFT}
            begun = log.append(Record(kind="inference.authorized", ts_us=moment, **who, **noise)).result()  # type: ignore[arg-type]
            left -= 10
            spent = {"eps_micro": 10, "budget_after_micro": left, "detail": LEFT, "units": number}
            ended = Record(kind="inference.failed", ts_us=moment, grant=begun.record.id, outcome="failed", **spent)  # type: ignore[arg-type]
            log.append(ended).result()
            denied = {**who, "reason": ["purpose", "budget"][number % 2], "detail": {"budget": "daily"}}
            log.append(Record(kind="inference.denied", ts_us=moment, **denied)).result()  # type: ignore[arg-type]
            if number % 7 == 0:
                log.append(Record(kind="auth.failed", ts_us=moment, reason="expired", detail={"count": "9"})).result()
                asked = {"question": "records"}
                log.append(Record(kind="audit.query", ts_us=moment, tenant="a", actor="eve", detail=asked)).result()
        detail = {"first": "3", "last": str(40 * (part + 1))}
        log.append(Record(kind="audit.review", ts_us=moment, actor="eve", detail=detail)).result()
        log.close()
    return bench


@pytest.fixture
def reader(make_bench: Callable[[Path], Any], tmp_path: Path) -> Iterator[Any]:
    bench = fill(make_bench(tmp_path))
    reader = bench.reader()
    reader.bench = bench
    yield reader
    reader.close()


def proven(reader: Any, name: str, question: Question) -> Report:
    """The same over a bundle of everything."""
    out = io.BytesIO()
    reader.export(0, reader.size() - 1, out)
    out.seek(0)
    return report_from_bundle(out, LogTrust(verifiers=(reader.bench.verifier,)), name=name, question=question)


moments = st.integers(NOON - DAY_US, NOON + 6 * DAY_US) | st.integers(19_999, 20_006).map(lambda day: day * DAY_US)
spans = st.tuples(st.none() | moments, st.none() | moments).filter(lambda pair: None in pair or pair[0] < pair[1])  # type: ignore[operator]
names = {"tenant": "abc", "actor": "xyz", "model": "mn"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_report_says_what_the_bundle_says(reader: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(REPORTS)))
    asked: dict[str, Any] = {}
    parameters = REPORTS[name].parameters
    if "from_us" in parameters:
        asked["from_us"], asked["to_us"] = data.draw(spans)
    if "at_us" in parameters:
        asked["at_us"] = data.draw(st.none() | moments)
    if "first" in parameters:
        first = data.draw(st.integers(0, 200))
        asked["first"], asked["last"] = first, data.draw(st.integers(first, 200))
    for filtered in set(names) & set(parameters):
        asked[filtered] = data.draw(st.none() | st.sampled_from(names[filtered]))
    question = Question(**asked)
    told, shown = reader.report(name, question), proven(reader, name, question)
    assert told.tables == shown.tables
    assert set(told.findings) <= set(shown.findings)
    assert (told.basis.source, told.basis.proven) == ("database", False)
    assert (told.basis.first, told.basis.last) == (shown.basis.first, shown.basis.last)


def test_an_empty_log_has_reports_too(bench: Any) -> None:
    bench.open().close()
    reader = bench.reader()
    for name in REPORTS:
        assert reader.report(name, Question()).ok
    reader.close()


def test_a_leaf_that_is_not_what_its_index_row_says_is_no_answer(bench: Any) -> None:
    log = bench.open()
    log.append(Record(kind="credential.revoke", detail={"by": "uid:0"})).result()
    log.close()
    bench.sql("UPDATE record SET kind = 'policy.change' WHERE kind = 'credential.revoke'")
    reader = bench.reader()
    with pytest.raises(LogDamaged):
        reader.report("break-glass", Question())
    reader.close()


def test_completeness_notices_a_leaf_that_was_changed(bench: Any) -> None:
    log = bench.open()
    log.append(bench.draft()).result()
    log.close()
    reader = bench.reader()
    assert reader.report("completeness", Question()).ok
    bench.sql("UPDATE leaf SET leaf = CAST(replace(leaf, 'care', 'cure') AS BLOB) WHERE idx = 1")
    report = reader.report("completeness", Question(first=1, last=1))
    assert report.findings == ("the leaves do not lead to the root of the log",)
    reader.close()


@pytest.mark.parametrize(
    ("name", "asked"),
    [("reconcile", {"first": 5, "last": 10**6}), ("completeness", {"first": 10**6}), ("access", {"first": 1})],
)
def test_what_is_not_there_is_refused(sqlite_bench: Any, name: str, asked: dict[str, int]) -> None:
    sqlite_bench.open().close()
    reader = sqlite_bench.reader()
    with pytest.raises((QueryRefused, DecodeError)):
        reader.report(name, Question(**asked))
    reader.close()


def test_no_report_reads_more_than_it_may(sqlite_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(sqlite_bench)
    reader = sqlite_bench.reader()
    monkeypatch.setattr(reports, "MAX_REPORT_RECORDS", 9)
    monkeypatch.setattr(by_kind, "MAX_REPORT_RECORDS", 9)
    monkeypatch.setattr(reports, "MAX_REPORT_DAY_GROUPS", 3)
    for name, asked in (
        ("reconcile", {"first": 0, "last": 9}),
        ("denials", {}),
        ("access", {"to_us": NOON + DAY_US}),
    ):
        with pytest.raises(QueryRefused):
            reader.report(name, Question(**asked))
    assert reader.report("reconcile", Question()).basis.first == reader.size() - 9
    first = reader.size() - 9
    for name in ("reconcile", "completeness"):
        said = f"it begins at record {first}: of records 0 to {first - 1} this says nothing"
        assert said in reader.report(name, Question()).limits
        assert said not in reader.report(name, Question(first=first)).limits
    reader.close()


def test_what_operators_did_is_listed_however_much_auditors_read(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = bench.open()
    log.append(Record(kind="credential.revoke", detail={"by": "uid:0"})).result()
    for _ in range(7):
        log.append(Record(kind="audit.query", tenant="clinic", detail={"question": "records"})).result()
    log.close()
    reader = bench.reader()
    whole = reader.report("break-glass", Question())
    monkeypatch.setattr(by_kind, "MAX_REPORT_LISTED", 4)
    cut = reader.report("break-glass", Question())
    for report, reads in ((whole, 7), (cut, 4)):
        operations, readings = report.tables
        assert [row[2] for row in operations.rows] == ["log.opened", "credential.revoke", "log.closed"]
        assert [row[4] for row in readings.rows] == [reads]
    said = f"of reads only the newest 4 are here, from record 5 of {ORIGIN} on"
    assert (said in cut.limits, said in whole.limits) == (True, False)
    monkeypatch.setattr(by_kind, "MAX_REPORT_LISTED", 2)
    assert (
        f"of operations only the newest 2 are here, from record 1 of {ORIGIN} on"
        in reader.report("break-glass", Question()).limits
    )
    reader.close()


# How it asks ----------------------------------------------------------------------------------------------------------


@contextmanager
def heard() -> Iterator[list[tuple[str, Any]]]:
    """Every statement that is sent to a database meanwhile."""
    said: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        said.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", hear)
    try:
        yield said
    finally:
        event.remove(Engine, "before_cursor_execute", hear)


def ask_everything(reader: Any) -> None:
    span = {"from_us": NOON + 5, "to_us": NOON + 3 * DAY_US + 7}
    for name, kind in REPORTS.items():
        for asked in ({}, span, {"at_us": NOON + DAY_US}, {"first": 3, "last": 90}):
            if set(asked) <= set(kind.parameters):
                reader.report(name, Question(**asked))


def test_no_report_scans_the_log_or_skips_rows(sqlite_bench: Any) -> None:
    fill(sqlite_bench)
    reader = sqlite_bench.reader()
    with heard() as said:
        ask_everything(reader)
    reader.close()
    raw = sqlite3.connect(sqlite_bench.path)
    plans = set()
    for statement, parameters in said:
        for skips in re.finditer(r"OFFSET \?", statement):  # SQLAlchemy writes it after every LIMIT
            assert parameters[statement[: skips.end()].count("?") - 1] == 0, statement
        plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        plans |= set(plan)
        for line in plan:
            assert not line.startswith(("SCAN record", "SCAN leaf", "SCAN day_count")), (statement, plan)
    raw.close()
    assert any("record_kind" in line for line in plans), plans
    assert any(line.startswith("SEARCH day_count USING PRIMARY KEY") for line in plans), plans


def test_no_report_scans_a_large_log_in_postgresql(postgres_bench: Any) -> None:
    fill(postgres_bench)
    postgres_bench.sql(
        "INSERT INTO record SELECT n, 'id ' || n, n, 'inference.completed', 'tenant ' || n % 500, 'a', 'm', '', '', "
        "'', '' FROM generate_series(1000, 40000) AS n"
    )
    postgres_bench.sql("INSERT INTO leaf SELECT idx, 'x' FROM record WHERE idx >= 1000")
    postgres_bench.sql("ANALYZE")
    reader = postgres_bench.reader()
    with heard() as said:
        ask_everything(reader)
    reader.close()
    with postgres_bench.store.server.connect(postgres_bench.store.name) as connection:
        for statement, parameters in said:
            if not statement.lstrip().upper().startswith("SELECT"):
                continue
            plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {statement}", parameters or None))
            assert "Seq Scan on record" not in plan, (statement, plan)
            assert "Seq Scan on leaf" not in plan, (statement, plan)
