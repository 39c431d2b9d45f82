"""Pages of what seldom comes together: each looks at a bounded part of the log, and together they miss nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from audit import pages
from audit.database import open_database
from audit.pages import looked_at, narrowest, page_statement, reach_statement
from audit.query import AuditReader, RecordFilter
from sealgate.transparency.record import Record

SCAN = 7
NAMES: dict[str, list[str]] = {
    "tenant": ["clinic", "lab"],
    "actor": ["a" * 32, "b" * 32],
    "model": ["", "m"],
    "model_digest": ["", "ab" * 32, "ab" * 4 + "cd" * 28],
    "purpose": ["", "care", "research"],
    "kind": ["inference.denied", "audit.query", "policy.change"],
    "outcome": ["", "completed", "denied"],
    "reason": ["", "purpose"],
}
WANTED = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in NAMES.items()})


@pytest.fixture
def reader(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[AuditReader]:
    """Over a log in which names come in turns of different lengths, so that some never come together."""
    with bench.open() as log:
        kinds, written = NAMES["kind"], []
        for number in range(90):
            fields = {name: values[number // (3 + at) % len(values)] for at, (name, values) in enumerate(NAMES.items())}
            written.append(log.append(Record(**{**fields, "kind": kinds[number % 3]})))
        for future in written:
            future.result(10)
    monkeypatch.setattr(pages, "PAGE_SCAN", SCAN)
    monkeypatch.setattr(pages, "PAGE_LOOK_NS", 0)
    made = bench.reader()
    yield made
    made.close()


def paged(reader: AuditReader, wanted: RecordFilter, limit: int) -> tuple[list[int], int]:
    """What all pages give, and how many they were."""
    found: list[int] = []
    cursor, count = None, 0
    while True:
        page = reader.records(wanted, cursor, limit)
        assert len(page.records) <= limit
        found += [entry.index for entry in page.records]
        cursor, count = page.cursor, count + 1
        if cursor is None:
            return found, count


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=WANTED, oldest=st.booleans(), limit=st.integers(1, 20))
def test_all_pages_together_are_what_matches(
    reader: AuditReader, fields: dict[str, str], oldest: bool, limit: int
) -> None:
    everything = reader.records(RecordFilter(oldest_first=True), limit=1000).records
    matching = [
        entry.index
        for entry in everything
        if all(getattr(entry.record, name) == value for name, value in fields.items())
    ]
    found, count = paged(reader, RecordFilter(**fields, oldest_first=oldest), limit)
    assert found == (matching if oldest else matching[::-1])
    assert count <= len(everything) // SCAN + len(matching) // limit + 2


def test_while_there_is_time_a_page_looks_on(reader: AuditReader, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = RecordFilter(tenant="clinic", actor="b" * 32)
    all_of_it, count = paged(reader, wanted, 5)
    assert count > len(all_of_it) // 5 + 1
    monkeypatch.setattr(pages, "PAGE_LOOK_NS", 60 * 10**9)
    found, fewer = paged(reader, wanted, 5)
    assert (found, fewer <= len(all_of_it) // 5 + 1) == (all_of_it, True)


def test_names_that_never_come_together_end_a_page_with_a_cursor(reader: AuditReader) -> None:
    wanted = RecordFilter(tenant="clinic", outcome="")  # each is common
    page = reader.records(RecordFilter(tenant="lab", kind="log.opened"))
    assert (page.records, page.cursor) == ((), None)  # rare: all of it is looked at
    assert reader.records(wanted, limit=1).cursor is not None
    both = RecordFilter(tenant="clinic", actor="c" * 32)
    assert reader.records(both).cursor is None  # nobody's


@pytest.mark.parametrize("oldest", [False, True])
@pytest.mark.parametrize(
    "wanted", [{"tenant": "clinic", "actor": "a" * 32}, {"kind": "audit.query", "model": "m"}, {"outcome": ""}]
)
def test_a_page_looks_at_no_more_than_it_may(bench: Any, reader: AuditReader, wanted: Any, oldest: bool) -> None:
    asked = RecordFilter(**wanted, oldest_first=oldest)
    engine = open_database(bench.url).reader_engine()
    with engine.begin() as connection:
        size, by = reader.size(), narrowest(connection, asked)
        far = looked_at(connection, asked, by=by, first=0, size=size, edge=None)
        assert far is not None
        span = (0, far) if oldest else (far, size - 1)
        by_value = "" if by is None else f"AND {by} = '{getattr(asked, by)}'"
        counted = text(f"SELECT count(*) FROM record WHERE idx BETWEEN {span[0]} AND {span[1]} {by_value}")
        assert connection.execute(counted).scalar_one() == SCAN
        page = page_statement(asked, size=size, edge=None, limit=100, by=by, far=far)
        assert all(span[0] <= row.idx <= span[1] for row in connection.execute(page))
    engine.dispose()


@pytest.mark.parametrize("name", ["tenant", "actor", "model", "purpose", "kind", "reason", "model_digest"])
def test_how_far_a_page_looks_is_found_by_the_index_alone(sqlite_bench: Any, name: str) -> None:
    sqlite_bench.open().close()
    wanted = RecordFilter(**{name: NAMES[name][-1]})
    statement = reach_statement(wanted, name, low=3, high=80)
    compiled = statement.compile(
        open_database(sqlite_bench.url).reader_engine(), compile_kwargs={"literal_binds": True}
    )
    plan = " ".join(row[-1] for row in sqlite_bench.sql(f"EXPLAIN QUERY PLAN {compiled}"))
    assert f"record_{name}" in plan
    assert "SCAN record" not in plan
    assert "TEMP B-TREE" not in plan
