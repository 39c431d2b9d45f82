"""SIGKILL of a real writer at random moments: what it had acknowledged is there, and nothing is left without an end."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.query import RecordFilter

WRITER = Path(__file__).parent / "crash_writer.py"


def run_and_kill(url: str, acknowledgements: int) -> list[tuple[str, int, str]]:
    """Start a writer, read that many lines, kill it; everything that it managed to say."""
    process = subprocess.Popen([sys.executable, WRITER, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == acknowledgements:
            break
    process.kill()
    lines += process.stdout.readlines()
    process.stdout.close()
    assert process.wait() == -9
    whole = [line.split() for line in lines if line.endswith("\n")]
    return [(kind, int(index), identifier) for kind, index, identifier in whole]


def kill_and_check(bench: Any, rounds: int, seed: int) -> None:
    moments = random.Random(seed)
    said: list[tuple[str, int, str]] = []
    for _ in range(rounds):
        said += run_and_kill(bench.url, moments.choice([1, 2, 3, moments.randrange(1, 60), moments.randrange(60, 400)]))
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
    assert [step.status for step in report.steps[5:]] == ["ok"] * 3, report.lines()


def test_a_killed_writer_loses_nothing_it_acknowledged(bench) -> None:
    kill_and_check(bench, rounds=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 15))
def test_a_writer_killed_again_and_again(bench, seed: int) -> None:
    kill_and_check(bench, rounds=20, seed=seed)
