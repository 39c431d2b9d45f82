"""SIGKILL at every statement of a writer's life, one by one: opening, batches with effects, publishing, closing."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from audit import commit
from audit.query import RecordFilter
from tests.audit.crash_at import LIVED, TABLES, live_until_killed, spend

SPAN = 251  # a row of the tree becomes full on the way


def one_life(bench: Any, statement: int, *, after: bool) -> tuple[int, list[tuple[int, str]]]:
    """Its wait status, and what it said was acknowledged."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        live_until_killed(bench, statement, after=after, pipe=write)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        lines = [msgspec.json.decode(line) for line in said if line.endswith(b"\n")]
    _, status = os.waitpid(child, 0)
    assert not any(isinstance(line, str) for line in lines), lines
    return status, [(index, identifier) for index, identifier in lines]


def check(bench: Any, said: list[tuple[int, str]]) -> None:
    """Everything that must hold whatever the moment was; opens the log, and so recovers."""
    bench.open(extra_tables=(TABLES,), on_abort=spend).close()
    reader = bench.reader()
    newest = reader.records(RecordFilter(), limit=40).records
    stored = {entry.index: entry.record for entry in newest}
    for index, identifier in said:
        assert stored[index].id == identifier
    reader.close()
    report = bench.audit()
    assert report.ok, report.lines()
    assert report.steps[5].status == "ok", report.lines()  # each authorized request has exactly one end
    assert bench.sql("SELECT count(*) FROM open_intent") == [(0,)]
    effects = bench.sql("SELECT count(*) FROM spent")[0][0]
    with_effect = bench.sql(
        "SELECT count(*) FROM record WHERE kind IN ('inference.authorized', 'inference.failed', 'inference.aborted')"
    )[0][0]
    assert (
        with_effect
        <= effects
        <= with_effect + bench.sql("SELECT count(*) FROM record WHERE kind = 'inference.denied' AND reason = ''")[0][0]
    )
    unknown = bench.sql("SELECT count(*) FROM spent WHERE id NOT IN (SELECT id FROM record)")
    assert unknown == [(0,)]


def lives(bench: Any, *, after: bool) -> tuple[int, int]:
    """Kill one writer after the other, a statement later each time; how many died, and how much they acknowledged."""
    log = bench.open(extra_tables=(TABLES,), on_abort=spend)
    for future in [log.append(bench.draft(reason="before")) for _ in range(SPAN - 14)]:
        future.result()
    log.close()
    deaths, acknowledged = 0, 0
    while True:
        status, said = one_life(bench, deaths + 1, after=after)
        check(bench, said)
        acknowledged += len(said)
        if os.waitstatus_to_exitcode(status) == LIVED:
            break
        assert os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status)
        deaths += 1
    assert deaths >= 40
    assert bench.sql("SELECT count(*) FROM tile WHERE level = 1") == [(1,)]
    return deaths, acknowledged


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_writer_killed_at_any_statement_leaves_a_whole_log(bench, after: bool) -> None:
    deaths, acknowledged = lives(bench, after=after)
    assert acknowledged > deaths  # many died after having acknowledged something


@pytest.mark.slow
def test_so_does_one_whose_index_rows_wait_for_later_transactions(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "BUSY_REQUESTS", 0)
    _, acknowledged = lives(bench, after=False)
    assert acknowledged >= 40
