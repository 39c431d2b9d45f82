"""Days are counted as the leaves say, whatever the filter and the span, on both databases, in bounded work."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from audit.activity import Activity, activity_statement, read_activity
from audit.database import open_database
from audit.query import RecordFilter
from sealgate.transparency.record import Record
from sealgate.transparency.reports.counting import DAY_US

FIRST = 20_000  # a day
KINDS = ["inference.completed", "inference.denied", "auth.failed"]


@pytest.fixture
def filled_days(bench: Any) -> tuple[Any, list[Record]]:
    """Refusals of two tenants over 70 days, some days without any, and counted failures of strangers."""
    log = bench.open(clock=lambda: FIRST * DAY_US)
    written = []
    for number in range(140):
        day = FIRST + number // 2 + (number // 2 > 30) * 5
        tenant, purpose = ("clinic", "lab")[number % 2], ("care", "research")[number % 3 == 0]
        draft = bench.draft(tenant=tenant, purpose=purpose, reason="policy", ts_us=day * DAY_US + number)
        written.append(log.append(draft).result().record)
    failed = Record(kind="auth.failed", reason="x", ts_us=FIRST * DAY_US, detail={"count": "7", "source": "public"})
    written.append(log.append(failed).result().record)
    log.close()
    return bench, written


def counted(bench: Any, wanted: RecordFilter, kinds: list[str] = KINDS) -> Activity | None:
    engine = open_database(bench.url).reader_engine()
    with engine.begin() as connection:
        found = read_activity(connection, wanted, kinds=kinds)
    engine.dispose()
    return found


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"tenant": "lab"},
        {"tenant": "lab", "purpose": "research"},
        {"reason": "policy", "model": "m", "actor": "a" * 32},
        {"tenant": "nobody"},
        {"from_us": FIRST * DAY_US},
        {"from_us": (FIRST + 3) * DAY_US + 5, "to_us": (FIRST + 9) * DAY_US + 1},
        {"to_us": (FIRST + 9) * DAY_US},
    ],
)
def test_days_are_counted_as_the_leaves_say(filled_days: Any, wanted: dict[str, Any]) -> None:
    bench, written = filled_days
    found = counted(bench, RecordFilter(**wanted))
    assert found is not None
    names = {name: value for name, value in wanted.items() if not name.endswith("_us")}
    expected: Counter[tuple[int, str]] = Counter()
    for record in written:
        day = record.ts_us // DAY_US
        if found.first_day <= day <= found.last_day and all(getattr(record, n) == v for n, v in names.items()):
            expected[day, record.kind] += int(record.detail.get("count", "1"))
    assert {(day, kind): count for day, kind, count in found.counts} == expected
    last = wanted["to_us"] - 1 if "to_us" in wanted else written[-2].ts_us
    assert found.last_day == last // DAY_US
    assert found.first_day == max(FIRST, wanted["from_us"] // DAY_US if "from_us" in wanted else found.last_day - 29)


@pytest.mark.parametrize(
    "wanted", [{"outcome": "denied"}, {"model_digest": "ab" * 32}, {"from_us": (FIRST + 999) * DAY_US}, {"to_us": 1}]
)
def test_what_the_days_do_not_know_is_not_drawn(filled_days: Any, wanted: dict[str, Any]) -> None:
    assert counted(filled_days[0], RecordFilter(**wanted)) is None


def test_a_log_without_a_day_and_a_span_without_a_bound(bench: Any, monkeypatch: Any) -> None:
    log = bench.open(clock=lambda: FIRST * DAY_US)
    assert counted(bench, RecordFilter()) is not None  # its opening is a record of that day
    log.append(bench.draft(ts_us=(FIRST + 5000) * DAY_US)).result()
    found = counted(bench, RecordFilter(from_us=0))
    assert found is not None
    assert found.last_day - found.first_day == 365
    assert found.cut
    assert not counted(bench, RecordFilter()).cut  # type: ignore[union-attr]
    bench.sql("DELETE FROM day_span")
    assert counted(bench, RecordFilter()) is None


def test_days_are_found_by_the_index_of_days(filled_days: Any, database: str) -> None:
    bench, _ = filled_days
    if database == "postgresql":
        row = "n, 'k' || n, decode('00', 'hex'), '', '', '', '', '', '', 1, 1, 1, 1, 1, 1"
        bench.sql(f"INSERT INTO day_count SELECT {row} FROM generate_series(1, 20000) n")
        bench.sql("ANALYZE day_count")
    engine = open_database(bench.url).reader_engine()
    statement = activity_statement(RecordFilter(tenant="lab"), first=FIRST, last=FIRST + 3, kinds=KINDS)
    with engine.begin() as connection:
        compiled = statement.compile(connection, compile_kwargs={"render_postcompile": True})
        text, given = str(compiled), compiled.params
        if database == "sqlite":
            given = tuple(given[name] for name in compiled.positiontup or ())
        explain = "EXPLAIN QUERY PLAN" if database == "sqlite" else "EXPLAIN"
        plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {text}", given))
    engine.dispose()
    assert "SEARCH day_count USING PRIMARY KEY (day>? AND day<?)" in plan or "day_count_pkey" in plan, plan
