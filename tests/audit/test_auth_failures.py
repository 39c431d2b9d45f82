"""Failed authentication: seen at once, counted in full, bounded in the log."""

from __future__ import annotations

import threading
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from audit.auth_failures import AuthFailures
from audit.limits import AUTH_FAILURE_KEYS, AUTH_FAILURE_SPAN_US
from audit.query import RecordFilter
from sealgate.transparency.record import Record

START = 1_700_000_000_000_000 // AUTH_FAILURE_SPAN_US * AUTH_FAILURE_SPAN_US


class Sink:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, draft: Record) -> None:
        self.records.append(draft)

    @property
    def counts(self) -> list[tuple[str, str, int]]:
        return [(r.reason, r.detail["source"], int(r.detail["count"])) for r in self.records]


class Hand:
    """A clock that is moved by hand."""

    now = START

    def __call__(self) -> int:
        return self.now


def test_the_first_is_written_at_once_and_the_rest_when_the_minute_is_over() -> None:
    sink, clock = Sink(), Hand()
    failures = AuthFailures(sink, clock)
    for _ in range(5):
        failures.note("expired", "public")
    failures.note("signature", "public")
    failures.note("expired", "loopback")
    assert sink.counts == [("expired", "public", 1), ("signature", "public", 1), ("expired", "loopback", 1)]
    clock.now += AUTH_FAILURE_SPAN_US - 1
    failures.tick()
    assert len(sink.records) == 3
    clock.now += 1
    failures.tick()
    failures.tick()
    assert sink.counts[3:] == [("expired", "public", 4)]
    assert sink.records[3].detail["minute_us"] == str(START)
    failures.note("expired", "public")
    assert sink.counts[4:] == [("expired", "public", 1)]


def test_a_flood_adds_a_bounded_number_of_records(bench, log) -> None:
    clock = Hand()
    failures = AuthFailures(log, clock)
    for number in range(10_000):
        failures.note(f"reason-{number % 500}", "public")
        clock.now += 5_000  # 50 seconds in all
    failures.flush()
    log.append(bench.draft()).result()
    reader = bench.reader()
    written = reader.records(RecordFilter(kind="auth.failed"), None, 1000).records
    reader.close()
    assert len(written) <= 2 * 2 * (AUTH_FAILURE_KEYS + 1)
    assert sum(int(entry.record.detail["count"]) for entry in written) == 10_000
    assert {entry.record.outcome for entry in written} == {"refused"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=60) | st.sampled_from(["expired", "signature"]), st.text(max_size=10), st.integers(0, 40)
        ),
        max_size=300,
    )
)
def test_nothing_is_lost_and_nothing_odd_is_written(calls: list[tuple[str, str, int]]) -> None:
    sink, clock = Sink(), Hand()
    failures = AuthFailures(sink, clock)
    for reason, source, seconds in calls:
        clock.now += seconds * 1_000_000
        failures.note(reason, source)
    failures.flush()
    failures.flush()
    assert sum(count for _, _, count in sink.counts) == len(calls)
    per_minute = Counter(record.detail["minute_us"] for record in sink.records)
    assert all(count <= 2 * (AUTH_FAILURE_KEYS + 1) for count in per_minute.values())
    for record in sink.records:
        for text in (record.reason, record.detail["source"]):
            assert text.isascii()
            assert 0 < len(text) <= 48


def test_a_failed_log_does_not_break_the_counter(bench, log) -> None:
    failures = AuthFailures(log, Hand())
    log.close()
    for _ in range(10):
        failures.note("expired", "public")
    failures.flush()


def test_threads() -> None:
    sink = Sink()
    failures = AuthFailures(sink, Hand())
    threads = [
        threading.Thread(target=lambda: [failures.note("expired", "public") for _ in range(500)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures.flush()
    assert sink.counts == [("expired", "public", 1), ("expired", "public", 3999)]
