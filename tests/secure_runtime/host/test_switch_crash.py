"""SIGKILL of a host at every step of its changes of models, one by one: whatever moment it dies in, the next start
serves what the log says was done, no more and no less.

A life is a process of its own on a real log and real files; its workers are sockets in the test's hand. It starts as a
host does, makes two changes, and dies before (or after) the step that it was told. What must be unloaded is worked out
from the words of all changes on record, not from the digests that the host goes by.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from audit.commit import Committer
from audit.log import AuditLog
from audit.query import AuditReader, RecordFilter
from sealgate.protocol.administration import ChangeModels
from sealgate.transparency.notes import NoteSigner
from sealgate.transparency.record import Record
from secure_runtime.host.choice import Choice, ModelRules, first_choice
from secure_runtime.host.repository import ModelKeeper
from secure_runtime.host.withheld import newest_change, settle_withheld
from tests.audit.every_statement import told_of
from tests.secure_runtime.host.test_fleet import Bench
from tests.secure_runtime.host.test_supervisor import ORIGIN

LIVED = 7  # exit status


def open_log(folder: Path) -> AuditLog:
    return AuditLog.open(
        f"sqlite:///{folder}/audit.sqlite",
        signer=NoteSigner.from_seed(ORIGIN, b"s" * 32),
        subjects_key=b"k" * 32,
        origin=ORIGIN,
        disk_reserve_bytes=0,
    )


def deployment(folder: Path) -> Any:
    return SimpleNamespace(
        models=folder / "models",
        withheld=folder / "models-withheld.json",
        settings=SimpleNamespace(named_models={}, runtime=SimpleNamespace(placement="together")),
    )


def records(folder: Path) -> list[Record]:
    with closing(AuditReader(f"sqlite:///{folder}/audit.sqlite", origin=ORIGIN)) as reader:
        found, cursor = [], None
        while True:
            page = reader.records(RecordFilter(kind="model.change", oldest_first=True), cursor, 1000)
            found += [entry.record for entry in page.records]
            cursor = page.cursor
            if cursor is None:
                return found


def start(folder: Path) -> tuple[Choice, Record | None]:
    """What a host that starts now serves, and by which change."""
    with closing(AuditReader(f"sqlite:///{folder}/audit.sqlite", origin=ORIGIN)) as reader:
        newest = newest_change(reader)
    settled = settle_withheld(deployment(folder).withheld, newest)
    assert not settled.by
    return first_choice(deployment(folder), settled.withheld, tell=lambda _text: None), newest


@contextmanager
def killed_at(wanted: int, *, statements: bool, after: bool) -> Iterator[None]:
    """SIGKILL to this process at the so-manieth step from here on: before or after a file is synced or renamed, a batch
    is committed or the log is asked to; with `statements` also each statement of the database."""
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(run: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **more: Any) -> Any:
            if not after:
                step()
            done = run(*arguments, **more)
            if after:
                step()
            return done

        return stepped

    for home, name in ((os, "fsync"), (os, "replace"), (Committer, "commit")):
        setattr(home, name, stepping(getattr(home, name)))
    event.listen(Engine, "commit", step)
    if not statements:
        yield
        return
    with told_of(Engine, **{"after" if after else "before": step}):
        yield


def live_until_killed(folder: Path, step: int, **how: bool) -> None:
    """Never returns. Ends with LIVED if it came to its end before the step."""
    try:
        log = open_log(folder)
        with killed_at(step, **how):
            choice, newest = start(folder)
            bench = Bench(log, folder)
            fleet = bench.make(choice)
            keeper = ModelKeeper(deployment(folder), log, fleet, ModelRules(), tell=bench.told.append)

            async def act(bench: Bench) -> None:
                await keeper.record_start(newest, by="")
                await bench.live(0, "1")
                there: list[Literal["load", "unload"]] = ["load", "unload"]
                for number, what in enumerate(there if choice.withheld else there[::-1], 1):
                    frame = ChangeModels(id=number, what=what, places=("m/2",))
                    asking = asyncio.create_task(keeper.answer(frame, by="uid:0"))
                    (await bench.worker(number)).hello(f"{number + 1}")
                    assert (await asking).code == ""

            bench.play(act)
            log.close()
        os._exit(LIVED)
    except BaseException as error:
        print(f"raised {error!r}", flush=True)
    os._exit(1)


def unloaded_by(said: list[Record]) -> frozenset[str]:
    """What all changes that were done come to."""
    unloaded: set[str] = set()
    for record in said:
        if record.outcome == "done" and record.detail["what"] == "unload":
            unloaded |= set(record.detail["asked"].split())
        elif record.outcome == "done" and record.detail["what"] == "load":
            unloaded -= set(record.detail["asked"].split())
    return frozenset(unloaded)


def lives(folder: Path, **how: bool) -> int:
    """Kill one host after the other, a step later each time; returns how many died."""
    for version in ("1", "2"):
        (folder / "models" / "m" / version).mkdir(parents=True)
    deaths, backups = 0, {}
    while True:
        child = os.fork()
        if child == 0:
            live_until_killed(folder, deaths + 1, **how)
        _, status = os.waitpid(child, 0)
        open_log(folder).close()  # as the next start does, and so recovers
        unloaded = unloaded_by(records(folder))
        assert start(folder)[0].withheld == unloaded, f"killed at step {deaths + 1}"
        backups[unloaded] = (folder / "audit.sqlite").read_bytes()
        if os.waitstatus_to_exitcode(status) == LIVED:
            break
        assert os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status)
        deaths += 1
    assert set(backups) == {frozenset(), frozenset({"m/2"})}, "no kill was late enough for a change to stand"
    for unloaded, database in backups.items():  # put back beside the file of today
        (folder / "audit.sqlite").write_bytes(database)
        assert start(folder)[0].withheld == unloaded
    return deaths


def test_a_host_killed_at_any_step_of_its_changes_serves_what_the_log_says(tmp_path: Path) -> None:
    assert lives(tmp_path, statements=False, after=False) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_so_does_one_killed_at_any_statement_of_the_log(tmp_path: Path, after: bool) -> None:
    assert lives(tmp_path, statements=True, after=after) >= 40
