"""Roll-ups by day say what the leaves say: after every commit, after a restart, after pruning, made anew."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from audit.database import open_database
from audit.days import forget_days, groups_of, rebuild_days
from audit.errors import LogDamaged, LogInUse
from audit.rebuilding import rebuild_roll_ups
from audit.tables import day_count, day_span, leaf
from audit.tables import record as record_table
from sealgate.errors import ConfigurationError
from sealgate.transparency.record import Record, parse_leaf
from sealgate.transparency.reports.counting import DAY_US, Counted, add_up, counted
from tests.audit.conftest import ORIGIN

START = 20_000 * DAY_US


def within(bench: Any, work: Any) -> Any:
    hold = open_database(bench.url).open_writer()
    try:
        with hold.engine.begin() as connection:
            return work(connection)
    finally:
        hold.release()


def stored(bench: Any) -> tuple[dict[Any, Counted], dict[int, tuple[int, int]]]:
    names = ("kind", "tenant", "actor", "model", "operation", "purpose", "reason", "records", "units", "eps_micro")
    groups = {}
    for row in bench.rows(select(day_count)):
        fields = {name: getattr(row, name) for name in (*names, "first_us", "last_us")}
        one = Counted(count=row.counted, **fields)
        groups[row.day, one.group] = one
    return groups, {row.day: (row.first_idx, row.last_idx) for row in bench.rows(select(day_span))}


def expected(bench: Any) -> tuple[dict[Any, Counted], dict[int, tuple[int, int]]]:
    """The same from the leaves, in plain Python."""
    days: dict[int, list[tuple[int, Record]]] = {}
    for index, content in bench.rows(select(leaf.c.idx, leaf.c.leaf).order_by(leaf.c.idx)):
        record = parse_leaf(bytes(content))
        days.setdefault(record.ts_us // DAY_US, []).append((index, record))
    groups = {
        (day, one.group): one for day, own in days.items() for one in add_up(counted(record) for _, record in own)
    }
    return groups, {day: (own[0][0], own[-1][0]) for day, own in days.items()}


drafts = st.lists(
    st.builds(
        dict,
        kind=st.sampled_from(["inference.denied", "auth.failed", "audit.query", "policy.change"]),
        ts_us=st.integers(START - DAY_US, START + DAY_US),
        tenant=st.sampled_from(["a", "b"]),
        model=st.sampled_from(["", "m" * 500]),
        purpose=st.sampled_from(["", "\u00fc" * 500]),
        reason=st.sampled_from(["", "x"]),
        detail=st.sampled_from([{}, {"count": "7"}]),
    ),
    max_size=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(drafts, min_size=1, max_size=3))
def test_roll_ups_say_what_the_leaves_say(bench: Any, batches: list[list[dict[str, Any]]]) -> None:
    for drafts in batches:
        log = bench.open()
        futures = [log.append(Record(**fields)) for fields in drafts]
        begun = bench.authorize(log)
        log.append(
            Record(kind="inference.failed", grant=begun.record.id, units=3, eps_micro=5, outcome="failed")
        ).result()
        for future in futures:
            future.result()
        assert stored(bench) == expected(bench)
        log.close()
    assert stored(bench) == expected(bench)


def test_a_log_from_before_there_were_roll_ups_is_counted_when_it_is_opened(bench: Any) -> None:
    log = bench.open()
    bench.start_worker(log)
    for _ in range(3):
        bench.request(log)
    log.close()
    before = stored(bench)
    for table in ("day_count", "day_span"):
        bench.sql(f"DELETE FROM {table}")
    bench.open().close()
    groups, spans = stored(bench)
    assert (groups, spans) == expected(bench)
    assert len(groups) >= len(before[0])


def test_made_anew_they_are_the_same(bench: Any) -> None:
    log = bench.open()
    for _ in range(3):
        log.append(bench.draft()).result()
    log.close()
    before = stored(bench)
    bench.sql("UPDATE day_count SET counted = counted + 5")
    assert stored(bench) != before
    within(bench, rebuild_days)
    assert stored(bench) == before


def test_the_command_makes_them_anew_and_waits_for_no_writer(bench: Any) -> None:
    log = bench.open()
    log.append(bench.draft()).result()
    with pytest.raises(LogInUse):
        rebuild_roll_ups(bench.url, origin=ORIGIN)
    log.close()
    before = stored(bench)
    bench.sql("UPDATE day_count SET counted = counted + 5")
    bench.sql("DELETE FROM day_span")
    with pytest.raises(ConfigurationError):
        rebuild_roll_ups(bench.url, origin="another/log")
    assert stored(bench) != before
    done = rebuild_roll_ups(bench.url, origin=ORIGIN)
    assert (done.days, done.groups) == (len(before[1]), len(before[0]))
    assert stored(bench) == before


def test_what_is_pruned_counts_no_more(bench: Any) -> None:
    log = bench.open()
    gone = [log.append(bench.draft(model="old")).result() for _ in range(3)]
    mixed = [log.append(bench.draft(model="both")).result() for _ in range(3)]
    log.close()

    def prune(connection: Any) -> None:
        first, last = gone[0].index, mixed[0].index
        groups = groups_of(connection, [(first, last)])
        connection.execute(delete(record_table).where(record_table.c.idx >= first, record_table.c.idx <= last))
        forget_days(connection, groups)
        forget_days(connection, [])

    within(bench, prune)
    left = {one.model: one.records for one in stored(bench)[0].values() if one.kind == "inference.denied"}
    assert left == {"both": 3}, "a group of which something is left counts as before"


def test_a_damaged_leaf_is_not_counted_as_something(bench: Any) -> None:
    log = bench.open()
    log.append(bench.draft()).result()
    log.close()
    bench.sql("UPDATE leaf SET leaf = CAST(replace(leaf, 'inference.denied', 'inference.danced') AS BLOB)")
    with pytest.raises(LogDamaged):
        within(bench, rebuild_days)
