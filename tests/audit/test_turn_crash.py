"""SIGKILL at every statement of a turn: before it, after it, or neither; never a half of it, and never two."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest

from audit import postgresql
from sealgate.transparency.notes import open_checkpoint
from sealgate.transparency.verifier import LogTrust, verify_bundle
from tests.audit.conftest import ORIGIN, SIGNER
from tests.audit.crash_at import LIVED, TABLES, killed_at, spend
from tests.audit.test_turning import H2, JULY, Clock, open_log


def one_turn(bench: Any, statement: int, *, after: bool) -> int:
    """A writer that opens the log before the turn and is killed at a statement of what comes then. Its exit status."""
    child = os.fork()
    if child == 0:
        try:
            postgresql.WRITER_LOCK_WAIT_S = 20.0
            clock = Clock()
            log = open_log(bench, clock, extra_tables=(TABLES,), on_abort=spend)
            bench.start_worker(log)
            begun = bench.authorize(log)
            log.append(bench.draft()).result()
            with killed_at(statement, after=after):
                clock.now = JULY
                log.append(bench.end(begun.record)).result()
                log._committer.publish()
            os._exit(LIVED)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def check(bench: Any) -> bool:
    """Everything that must hold whatever the moment was; whether the log had turned."""
    turned = bench.sql("SELECT count(*) FROM shard")[0][0] == 2
    clock = Clock(JULY)
    open_log(bench, clock, extra_tables=(TABLES,), on_abort=spend).close()
    reader = bench.reader()
    shards = reader.shards()
    assert [shard.origin for shard in shards.all] == [ORIGIN, H2]
    for shard in shards.all:
        size = shards.size_of(shard)
        checkpoint = open_checkpoint(reader.checkpoint(origin=shard.origin), [SIGNER.verifier]).checkpoint
        assert (checkpoint.origin, checkpoint.size) == (shard.origin, size)
        out = io.BytesIO()
        reader.export(0, size - 1, out, origin=shard.origin)
        report = verify_bundle(out, LogTrust(verifiers=(SIGNER.verifier,)))
        assert report.ok, report.lines()
        assert report.steps[5].status == "ok", report.lines()  # each authorized request has exactly one end
    reader.close()
    assert bench.sql("SELECT count(*) FROM open_intent") == [(0,)]
    assert bench.sql("SELECT count(*) FROM record WHERE kind = 'log.opened' AND outcome = 'turned'") == [(1,)]
    return bool(turned)


def every(bench: Any, statements: range, *, after: bool) -> tuple[int, int]:
    """How many were killed before the turn stood, and how many after."""
    before = since = 0
    open_log(bench, Clock(), extra_tables=(TABLES,), on_abort=spend).close()
    fresh = bench.save()
    for statement in statements:
        bench.restore(fresh)
        status = one_turn(bench, statement, after=after)
        turned = check(bench)
        if status == LIVED:
            break
        assert status == -9
        since += turned
        before += not turned
    return before, since


def test_a_writer_killed_in_a_turn_leaves_one_shard_or_two(bench) -> None:
    before, since = every(bench, range(3, 40, 7), after=False)
    assert before
    assert since


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_writer_killed_at_any_statement_of_a_turn_leaves_one_shard_or_two(bench, after: bool) -> None:
    before, since = every(bench, range(1, 200), after=after)
    assert before >= 8
    assert since >= 5
