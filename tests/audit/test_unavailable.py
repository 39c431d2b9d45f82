"""When the log cannot write: a sticky failure, a full queue, a full disk. Nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from audit import log as log_module
from audit.errors import LogUnavailable
from audit.limits import DISK_FLOOR_DIVISOR, DISK_RESERVE_BYTES
from sealgate.transparency.record import Record
from tests.audit.conftest import Bench, PostgresStore
from tests.audit.postgres_server import PostgresServer


def unavailable(future: Any) -> str:
    with pytest.raises(LogUnavailable) as caught:
        future.result(timeout=30)
    assert caught.value.retry_after_s > 0
    return caught.value.code


def require_failed_for_good(bench: Any, log: Any) -> None:
    assert not log.state.ok
    assert log.state.reason
    for kind in ("inference.authorized", "inference.denied", "inference.completed"):
        assert unavailable(log.append(bench.draft(kind))) == "log-failed"
    with pytest.raises(LogUnavailable) as caught:
        log.check_may_infer()
    assert caught.value.code == "log-failed"


def boom(*_: Any) -> None:
    raise sqlite3.OperationalError("disk I/O error")


def break_at(bench: Any, log: Any, point: str) -> Callable[[], None]:
    """Make one step of every commit fail; what is returned makes it work again."""
    if bench.url.startswith("sqlite"):
        if point == "commit":
            event.listen(log._hold.engine, "commit", boom)
        else:  # on the writer's own connection, so that it is gone with it
            with log._hold.engine.begin() as connection:
                when = point.replace("INTO", "ON").replace("UPDATE", "UPDATE ON")
                connection.exec_driver_sql(
                    f"CREATE TEMP TRIGGER boom BEFORE {when} BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END"
                )
        return lambda: None
    bench.sql("CREATE FUNCTION boom() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk I/O error'; END $$")
    if point == "commit":  # runs when everything else is done, as the commit's first step
        bench.sql(
            "CREATE CONSTRAINT TRIGGER boom AFTER UPDATE ON head DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION boom()"
        )
    else:
        bench.sql(
            f"CREATE TRIGGER boom BEFORE {point.replace('INTO', 'ON').replace('UPDATE', 'UPDATE ON')} "
            "FOR EACH ROW EXECUTE FUNCTION boom()"
        )
    return lambda: bench.sql("DROP FUNCTION boom CASCADE") and None


@pytest.mark.parametrize(
    "point", ["INSERT INTO leaf", "INSERT INTO record", "UPDATE head", "commit", "INSERT INTO subject"]
)
def test_a_failing_commit_fails_the_log_for_good_and_keeps_what_was_acknowledged(bench, point: str) -> None:
    log = bench.open()
    bench.start_worker(log)
    acknowledged = [bench.request(log) for _ in range(5)]
    open_one = bench.authorize(log)
    mend = break_at(bench, log, point)
    log.actor("clinic", "somebody new")
    futures = [log.append(bench.draft(reason=str(number))) for number in range(50)]
    assert {unavailable(future) for future in futures} == {"log-failed"}
    require_failed_for_good(bench, log)
    log.close()
    mend()
    again = bench.open()
    report = bench.audit(receipts=[item.receipt for item in acknowledged])
    assert report.ok
    assert report.steps[5].status == "ok"  # the one that was under way was aborted
    assert again.append(bench.draft()).result().index == open_one.index + 3


def test_those_still_in_the_queue_are_told_too(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr(log_module, "MAX_BATCH", 2)
    gate, entered = threading.Event(), threading.Event()

    def wait(_: Connection, record: Record) -> Record:
        entered.set()
        gate.wait()
        return record

    futures = [log.append(bench.draft(), wait)]
    entered.wait()
    futures += [log.append(bench.draft()) for _ in range(9)]
    break_at(bench, log, "commit")
    gate.set()
    assert {unavailable(future) for future in futures} == {"log-failed"}


def test_a_foreign_writer_is_noticed_at_the_head(bench, log) -> None:
    log.append(bench.draft()).result()
    bench.sql("UPDATE head SET size = size + 1")
    assert unavailable(log.append(bench.draft())) == "log-failed"
    require_failed_for_good(bench, log)
    assert "log-damaged" in log.state.reason


def test_an_effect_that_commits_is_fatal_not_silent(bench, log) -> None:
    def rogue(connection: Connection, record: Record) -> Record:
        connection.execute(text("COMMIT"))
        return record

    assert unavailable(log.append(bench.draft(), rogue)) == "log-failed"
    require_failed_for_good(bench, log)


def test_a_signer_that_fails_acknowledges_nothing(bench, log) -> None:
    class Broken:
        def sign(self, _: bytes) -> bytes:
            raise OSError("no key")

    bench_key = bench.signer._key
    log._committer._signer._key = Broken()
    try:
        assert unavailable(log.append(bench.draft())) == "log-failed"
    finally:
        bench.signer._key = bench_key
    require_failed_for_good(bench, log)


def test_a_failed_log_still_closes(bench, log) -> None:
    mend = break_at(bench, log, "commit")
    assert unavailable(log.append(bench.draft())) == "log-failed"
    log.close()
    log.close()
    mend()
    bench.open()  # the lock is free again


# Queue ---------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_new_work_first_and_ends_never(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr(log_module, "MAX_QUEUE", 8)
    monkeypatch.setattr(log_module, "MAX_QUEUE_FOR_INFERENCE", 4)
    begun = [bench.authorize(log) for _ in range(20)]
    gate, entered = threading.Event(), threading.Event()

    def wait(_: Connection, record: Record) -> Record:
        entered.set()
        gate.wait()
        return record

    blocker = log.append(bench.draft(), wait)
    entered.wait()
    waiting = [log.append(bench.draft("inference.authorized")) for _ in range(4)]
    assert unavailable(log.append(bench.draft("inference.authorized"))) == "queue-full"
    with pytest.raises(LogUnavailable) as caught:
        log.check_may_infer()
    assert caught.value.code == "queue-full"
    waiting += [log.append(bench.draft()) for _ in range(4)]
    assert unavailable(log.append(bench.draft())) == "queue-full"
    waiting += [log.append(bench.end(item.record)) for item in begun]
    gate.set()
    blocker.result()
    assert [item.result().index for item in waiting] == list(range(22, 22 + 28))
    log.check_may_infer()


# Disk ----------------------------------------------------------------------------------------------------------------


def test_below_the_reserve_no_inference_starts_and_everything_else_is_recorded(bench) -> None:
    free = DISK_RESERVE_BYTES
    log = bench.open(disk_free=lambda: free)
    begun = bench.authorize(log)
    free -= 1
    with pytest.raises(LogUnavailable) as caught:
        log.check_may_infer()
    assert caught.value.code == "disk-reserve"
    assert unavailable(log.append(bench.draft("inference.authorized"))) == "disk-reserve"
    log.append(bench.draft()).result()
    log.append(Record(kind="policy.change")).result()
    log.append(bench.end(begun.record)).result()
    assert log.state.ok
    free += 1
    bench.authorize(log)


def test_denials_cannot_fill_the_disk_and_so_end_the_log_for_everybody(bench) -> None:
    free = DISK_RESERVE_BYTES
    log = bench.open(disk_free=lambda: free)
    bench.start_worker(log)
    begun = [bench.authorize(log) for _ in range(3)]
    free = DISK_RESERVE_BYTES // DISK_FLOOR_DIVISOR
    log.append(bench.draft()).result()
    free -= 1
    for kind in ("inference.denied", "auth.failed", "audit.query"):
        assert unavailable(log.append(bench.draft(kind))) == "disk-reserve"
    for item in begun:
        log.append(bench.end(item.record)).result()
    log.close()
    assert bench.audit().ok


def test_a_disk_that_cannot_be_asked_counts_as_full(bench) -> None:
    def gone() -> int:
        raise OSError("the disk went away")

    log = bench.open(disk_free=gone)
    assert unavailable(log.append(bench.draft("inference.authorized"))) == "disk-reserve"
    log.append(bench.draft()).result()


def test_the_default_reads_the_real_disk(sqlite_bench) -> None:
    log = sqlite_bench.open(disk_reserve_bytes=2**62)
    with pytest.raises(LogUnavailable) as caught:
        log.check_may_infer()
    assert caught.value.code == "disk-reserve"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("NEEDS ROOT: mounts a small file system to fill it up; nothing was tested")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"CANNOT MOUNT tmpfs here, so the full disk was not tested: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
def test_a_really_full_disk(small_disk: Path, make_sqlite_bench: Any) -> None:
    bench = make_sqlite_bench(small_disk)
    log = bench.open(disk_reserve_bytes=1)
    bench.start_worker(log)
    acknowledged = [bench.request(log) for _ in range(20)]
    open_one = bench.authorize(log)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    with pytest.raises(LogUnavailable):
        log.check_may_infer()  # the reserve says so before the writer hits the wall
    acknowledged_late = []
    code = ""
    while not code:
        future = log.append(bench.draft(detail={"x": "y" * 4000}))
        if future.exception(timeout=30):
            code = unavailable(future)
        else:
            acknowledged_late.append(future.result())
    assert code == "log-failed"
    assert "SQLITE_FULL" in log.state.reason or "SQLITE_IOERR" in log.state.reason
    require_failed_for_good(bench, log)
    log.close()
    ballast.unlink()
    again = bench.open(disk_reserve_bytes=1024)
    receipts = [item.receipt for item in [*acknowledged, open_one, *acknowledged_late]]
    report = bench.audit(receipts=receipts)
    assert report.ok, report.lines()
    assert report.steps[5].status == "ok"
    again.check_may_infer()
    again.close()


@pytest.fixture
def crowded_bench(postgres: PostgresServer, tmp_path: Path) -> Iterator[tuple[Bench, Path]]:
    """A log whose tables stand on a disk of 32 MiB of the PostgreSQL server, and that disk."""
    if os.geteuid() != 0:
        pytest.skip("NEEDS ROOT: mounts a small file system to fill it up; nothing was tested")
    place = Path(tempfile.mkdtemp(prefix="sealgate-full-", dir="/tmp"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"CANNOT MOUNT tmpfs here, so the full disk was not tested: {mounted.stderr.decode()}")
    owner = postgres.folder.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    postgres.admin(f"CREATE TABLESPACE crowded LOCATION '{place}'")
    store = PostgresStore(postgres)
    postgres.admin(f"ALTER DATABASE {store.name} SET TABLESPACE crowded")
    bench = Bench(store, tmp_path / "people.sqlite")
    yield bench, place
    bench.close()
    postgres.admin("DROP TABLESPACE crowded")
    subprocess.run(["umount", "-l", place], check=True)
    place.rmdir()


@pytest.mark.root
def test_a_really_full_disk_of_the_postgresql_server(crowded_bench: tuple[Bench, Path]) -> None:
    bench, place = crowded_bench
    log = bench.open()
    bench.start_worker(log)
    acknowledged = [bench.request(log) for _ in range(20)]
    acknowledged.append(bench.authorize(log))  # under way when the disk is full
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    code = ""
    while not code:
        future = log.append(bench.draft(detail={"x": "y" * 4000}))
        if future.exception(timeout=60):
            code = unavailable(future)
        else:
            acknowledged.append(future.result())
    assert code == "log-failed"
    assert "DiskFull" in log.state.reason or "53100" in log.state.reason
    require_failed_for_good(bench, log)
    log.close()
    ballast.unlink()
    again = bench.open()
    report = bench.audit(receipts=[item.receipt for item in acknowledged])
    assert report.ok, report.lines()
    assert report.steps[5].status == "ok"
    again.check_may_infer()
    again.close()
