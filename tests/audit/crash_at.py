"""A writer's whole life in a process of its own, which is killed at one statement of the database that it chooses.

Used with fork: the child runs `live_until_killed` and says on a pipe what was acknowledged to it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, event, insert
from sqlalchemy.engine import Engine

from audit import copying, postgresql
from audit.log import AuditLog
from sealgate.transparency.record import Record
from tests.audit.every_statement import told_of

TABLES = MetaData()
spent = Table("spent", TABLES, Column("id", Text, primary_key=True), Column("n", Integer, nullable=False))
LIVED = 7  # exit status


def spend(connection: Connection, record: Record) -> Record:
    """An effect: what it writes must stand exactly where its record stands."""
    connection.execute(insert(spent).values(id=record.id, n=1))
    return record


@contextmanager
def killed_at(statement: int, *, after: bool) -> Iterator[None]:
    """SIGKILL to this process before (or after) the so-manieth statement or commit from here on."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    copy = copying._copy

    def copied(*arguments: Any) -> None:
        if not after:
            step()
        copy(*arguments)
        if after:
            step()

    copying._copy = copied
    event.listen(Engine, "commit", lambda *_: step())
    with told_of(Engine, **{"after" if after else "before": lambda _: step()}):
        yield


def live_until_killed(bench: Any, statement: int, *, after: bool, pipe: int) -> None:
    """Never returns. Ends with LIVED if it came to its end before the statement."""
    try:
        postgresql.WRITER_LOCK_WAIT_S = 20.0
        with killed_at(statement, after=after):
            log = bench.open(extra_tables=(TABLES,), on_abort=spend)
            _write(bench, log, pipe)
            log.publish_cosigned(*_cosigned(log))
            log.close()
        os._exit(LIVED)
    except BaseException as error:
        os.write(pipe, msgspec.json.encode(f"raised {error!r}") + b"\n")
    os._exit(1)


def _write(bench: Any, log: AuditLog, pipe: int) -> None:
    log.actor("clinic", "somebody")
    begun = [log.append(bench.draft("inference.authorized"), spend).result() for _ in range(2)]
    ended = log.append(bench.draft("inference.failed", grant=begun[0].record.id), spend).result()
    several = [log.append(bench.draft(), spend if number % 2 else None) for number in range(4)]
    for done in (*begun, ended, *(future.result() for future in several)):
        os.write(pipe, msgspec.json.encode([done.index, done.record.id]) + b"\n")
    log._committer.publish()


def _cosigned(log: AuditLog) -> tuple[int, bytes]:
    return log.state.size, log.checkpoint()
