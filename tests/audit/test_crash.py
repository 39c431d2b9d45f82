"""SIGKILL at random moments, of the writer, of its PostgreSQL session, of the whole server: what was acknowledged is
there, and nothing is left without an end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.query import RecordFilter

WRITER = Path(__file__).parent / "crash_writer.py"
Said = list[tuple[str, int, str]]


def run_until(bench: Any, acknowledgements: int, end: Callable[[subprocess.Popen[str]], None]) -> Said:
    """Start a writer, read that many lines, end it that way; everything that it managed to say."""
    process = subprocess.Popen(
        [sys.executable, WRITER, bench.url, str(bench.people)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == acknowledgements:
            break
    assert len(lines) == acknowledgements, "the writer ended by itself"
    end(process)
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait(60)
    whole = [line.split() for line in lines if line.endswith("\n")]
    return [(kind, int(index), identifier) for kind, index, identifier in whole]


def kill_writer(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL


def kill_and_check(bench: Any, rounds: int, seed: int, end: Callable[..., None] = kill_writer) -> None:
    moments = random.Random(seed)
    said: Said = []
    for _ in range(rounds):
        moment = moments.choice([1, 2, 3, moments.randrange(1, 60), moments.randrange(60, 400)])
        said += run_until(bench, moment, end)
    log = bench.open()
    assert log.state.ok
    reader = bench.reader()
    stored = {}
    cursor = None
    while True:
        page = reader.records(RecordFilter(oldest_first=True), cursor, 1000)
        stored.update({entry.index: entry.record for entry in page.records})
        cursor = page.cursor
        if cursor is None:
            break
    reader.close()
    assert said
    for kind, index, identifier in said:
        assert (stored[index].kind, stored[index].id) == (f"inference.{kind}", identifier)
    begun = {record.id for record in stored.values() if record.kind == "inference.authorized"}
    ends = [record.grant for record in stored.values() if record.kind in ("inference.completed", "inference.aborted")]
    assert sorted(ends) == sorted(begun)  # exactly one end each
    report = bench.audit(kept=None)
    assert report.ok, report.lines()
    assert [step.status for step in report.steps[5:]] == ["ok"] * 4, report.lines()


def kill_session(bench: Any) -> Callable[[subprocess.Popen[str]], None]:
    """SIGKILL of the server process behind the writer; PostgreSQL then restarts all of them and recovers."""

    def end(process: subprocess.Popen[str]) -> None:
        ((session,),) = bench.sql(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'sealgate audit writer'"
        )
        os.kill(session, signal.SIGKILL)
        process.wait(60)  # its log has failed: it cannot go on, and nobody had to kill it
        bench.store.server.wait_until_up()

    return end


def crash_server(bench: Any) -> Callable[[subprocess.Popen[str]], None]:
    """Every process of the server ends at once, with nothing written back; it recovers from its log."""

    def end(process: subprocess.Popen[str]) -> None:
        bench.store.server.stop("immediate")
        process.wait(60)
        bench.store.server.start()

    return end


def test_a_killed_writer_loses_nothing_it_acknowledged(bench) -> None:
    kill_and_check(bench, rounds=3, seed=1)


@pytest.mark.parametrize("end", [kill_session, crash_server])
def test_a_database_that_is_killed_loses_nothing_it_acknowledged(postgres_bench, end: Callable[..., Any]) -> None:
    kill_and_check(postgres_bench, rounds=3, seed=2, end=end(postgres_bench))


@pytest.mark.slow
@pytest.mark.parametrize("end", [kill_session, crash_server])
def test_a_database_that_is_killed_again_and_again(postgres_bench, end: Callable[..., Any]) -> None:
    kill_and_check(postgres_bench, rounds=15, seed=3, end=end(postgres_bench))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 15))
def test_a_writer_killed_again_and_again(bench, seed: int) -> None:
    kill_and_check(bench, rounds=20, seed=seed)
