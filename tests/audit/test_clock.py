"""A clock that goes back, or jumps: the order is the index, the time is what the clock said, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from audit.auth_failures import AuthFailures
from audit.days import rebuild_days
from audit.query import RecordFilter
from audit.tables import day_count, day_span
from sealgate.transparency.cosignatures import Cosigner
from sealgate.transparency.notes import open_checkpoint
from sealgate.transparency.published import open_published
from tests.audit.conftest import ORIGIN

HOUR, DAY, YEAR = 3_600_000_000, 86_400_000_000, 365 * 86_400_000_000
NOW = 1_790_000_000_000_000
STEPS = [-1, -HOUR, HOUR, -3 * DAY, 40 * DAY, -10 * YEAR, 20 * YEAR, -9 * YEAR, 0]
MLDSA = Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(b"\x04" * 32))


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def pages(reader: Any, limit: int = 7) -> Iterator[Any]:
    cursor = None
    while True:
        page = reader.records(RecordFilter(oldest_first=True), cursor, limit)
        yield from page.records
        cursor = page.cursor
        if cursor is None:
            return


def test_a_clock_that_goes_back_and_forth_loses_nothing(bench) -> None:
    clock, said = Clock(), []
    for step in STEPS:
        log = bench.open(clock=clock, mldsa=MLDSA)  # each step once between two starts, and once while it runs
        said += [log.append(bench.draft()).result() for _ in range(3)]
        clock.now += step
        said += [log.append(bench.draft()).result() for _ in range(3)]
        log._committer.publish()
        log.close()
    reader = bench.reader()
    read = list(pages(reader))
    assert [entry.index for entry in read] == list(range(reader.size()))
    assert len({entry.record.id for entry in read}) == len(read)
    assert {done.index: done.record for done in said}.items() <= {entry.index: entry.record for entry in read}.items()
    moments = [entry.record.ts_us for entry in read]
    assert moments != sorted(moments)  # as the clock said it: not made up to look in order
    low, high = NOW - HOUR - 1, NOW
    wanted = [entry.index for entry in read if low <= entry.record.ts_us < high]
    found = reader.records(RecordFilter(from_us=low, to_us=high, oldest_first=True), None, 1000).records
    assert wanted
    assert [entry.index for entry in found] == wanted
    published = open_published(reader.checkpoint(), [bench.verifier], [MLDSA.public]).checkpoint
    assert published.size == reader.size()
    reader.close()
    assert bench.audit(receipts=[done.receipt for done in said]).ok


def test_days_are_counted_by_each_records_own_time(bench) -> None:
    clock = Clock()
    log = bench.open(clock=clock)
    for step in STEPS:
        clock.now += step
        log.append(bench.draft()).result()
    log.close()
    tables = [select(table).order_by(*table.primary_key.columns) for table in (day_count, day_span)]
    before = [list(map(tuple, bench.rows(statement))) for statement in tables]
    hold = bench.open(clock=clock)._hold
    with hold.engine.connect() as connection, connection.begin() as transaction:
        newest = [list(map(tuple, connection.execute(statement).all())) for statement in tables]
        rebuild_days(connection)
        assert [list(map(tuple, connection.execute(statement).all())) for statement in tables] == newest
        transaction.rollback()
    assert len(before[0]) >= 6


def test_published_checkpoints_go_on_when_the_clock_goes_back(bench) -> None:
    clock = Clock()
    log = bench.open(clock=clock, mldsa=MLDSA)
    for step in (-HOUR, -HOUR, HOUR, -YEAR):
        clock.now += step
        size = log.append(bench.draft()).result().index + 1
        log._committer.publish()
        newest = bench.sql("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1")[0][0]
        assert open_checkpoint(bytes(newest), [bench.verifier]).checkpoint.size == size
    log.close()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 5)), max_size=12))
def test_failed_authentication_is_counted_once_whatever_the_clock_does(steps: list[tuple[int, int]]) -> None:
    class Sink:
        records: list[Any] = []

        def append(self, draft: Any) -> None:
            self.records.append(draft)

    clock, sink = Clock(), Sink()
    sink.records = []
    failures, told = AuthFailures(sink, clock=clock), 0
    for step, count in steps:
        clock.now += step
        for _ in range(count):
            failures.note("token-expired", "loopback")
        told += count
        failures.tick()
    failures.flush()
    assert sum(int(record.detail["count"]) for record in sink.records) == told


@pytest.mark.parametrize("moment", [1_000_000, 2**53 - 1])
def test_a_clock_at_the_edge_of_time_does_not_fail_the_log(bench, moment: int) -> None:
    log = bench.open(clock=lambda: moment, mldsa=MLDSA)
    assert log.append(bench.draft()).result().record.ts_us == moment
    log.close()
    assert bench.audit().ok
