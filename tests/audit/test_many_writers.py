"""Sixty-four callers at once, and two writers where something let a second one in."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from audit import postgresql, sqlite
from audit.errors import LogUnavailable
from sealgate.transparency.receipt import verify_receipt

CALLERS, EACH = 64, 6


def test_sixty_four_callers_get_a_place_of_their_own_each(bench, log) -> None:
    bench.start_worker(log)
    order, done, failed = threading.Lock(), [], []

    def caller(number: int) -> None:
        try:
            for turn in range(EACH):
                begun = log.append(bench.draft("inference.authorized", reason=f"{number}/{turn}")).result(60)
                with order:  # a worker has one counter
                    future = log.append(bench.end(begun.record))
                mine = (begun, future.result(60), log.append(bench.draft(reason=f"{number}")).result(60))
                with order:
                    done.extend(mine)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(item.index for item in done) == list(range(2, 2 + 3 * CALLERS * EACH))
    for item in done[::37]:
        assert verify_receipt(item.receipt, [bench.verifier]).record == item.record
    log.close()
    report = bench.audit(receipts=[item.receipt for item in done[::97]])
    assert report.ok, report.lines()
    assert [step.status for step in report.steps[5:8]] == ["ok"] * 3


def test_a_second_writer_that_got_past_the_lock_stops_the_first_and_harms_nothing(bench, log, monkeypatch) -> None:
    """The lock is one reason why there is one writer; the head, which moves only from where it was left, is another."""
    first = [log.append(bench.draft(reason="first")).result() for _ in range(5)]
    monkeypatch.setattr(postgresql, "_take_lock", lambda _: None)
    monkeypatch.setattr(sqlite.fcntl, "flock", lambda *_: None)
    second = bench.open()
    theirs = [second.append(bench.draft(reason="second")).result() for _ in range(5)]
    with pytest.raises(LogUnavailable):
        log.append(bench.draft(reason="too late")).result(60)
    assert not log.state.ok
    ours = [second.append(bench.draft(reason="second")).result() for _ in range(5)]
    log.close()
    second.close()
    monkeypatch.undo()
    report = bench.audit(receipts=[item.receipt for item in [*first, *theirs, *ours]])
    assert report.ok, report.lines()
    assert bench.sql("SELECT count(*) FROM record WHERE reason = 'too late'") == [(0,)]
    bench.open().close()


def test_two_writers_at_once_never_write_the_same_place(bench, monkeypatch) -> None:
    monkeypatch.setattr(postgresql, "_take_lock", lambda _: None)
    monkeypatch.setattr(sqlite.fcntl, "flock", lambda *_: None)
    one = bench.open()
    receipts: list[bytes] = []
    logs: list[Any] = [one, bench.open()]
    lock = threading.Lock()

    def write(log: Any) -> None:
        for _ in range(20):
            try:
                appended = log.append(bench.draft()).result(60)
            except LogUnavailable:
                return
            with lock:
                receipts.append(appended.receipt)

    threads = [threading.Thread(target=write, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    monkeypatch.undo()
    assert sum(log.state.reason == "closed" for log in logs) <= 1
    report = bench.audit(receipts=receipts)
    assert report.ok, report.lines()
    bench.open().close()
