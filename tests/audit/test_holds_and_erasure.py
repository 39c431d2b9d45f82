"""Holds and erasures: in the transaction of their record, on both databases; what is deleted is gone from the files."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
from typing import Any

import pytest

from audit import holds
from audit.database import open_database
from audit.erasure import erasing, forgetting
from audit.errors import LogDamaged, LogUnavailable, PrivacyRefused
from audit.holds import holds_by_index, holds_in_force, placing, releasing
from audit.sealing import HeadSeal
from sealgate.transparency.record import Record
from tests.audit.conftest import SIGNER


def place(log: Any, name: str = "case-7", *, tenant: str = "", subject: str = "") -> Any:
    effect = placing(log.subjects, name=name, tenant=tenant, subject=subject)
    return log.append(Record(kind="hold.placed", detail={"by": "uid:1"}), effect).result()


def release(log: Any, name: str = "case-7") -> Any:
    return log.append(Record(kind="hold.released"), releasing(name=name)).result()


def erase(log: Any, subject: str = "alice", *, tenant: str = "clinic", ground: str = "objection") -> Any:
    effect = erasing(log.subjects, tenant=tenant, subject=subject, ground=ground)
    return log.append(Record(kind="erasure.completed", detail={"by": "uid:1", "note": "asked"}), effect).result()


def in_force(log: Any) -> list[str]:
    with log.reading() as connection:
        found, by_index = holds_in_force(connection), holds_by_index(connection)
    assert found == by_index
    return [hold.name for hold in found]


def seen(bench: Any, log: Any, *names: str) -> list[str]:
    refs = [log.actor("clinic", name) for name in names]
    for ref in refs:
        log.append(bench.draft(actor=ref)).result()
    return refs


def key_row(bench: Any, ref: str) -> tuple[bytes, bytes]:
    with contextlib.closing(sqlite3.connect(bench.people)) as raw:
        return raw.execute("SELECT handle, wrapped FROM person WHERE ref = ?", (ref,)).fetchone()


# Holds ---------------------------------------------------------------------------------------------------------------


def test_a_hold_lasts_until_it_is_released(bench, log) -> None:
    (alice,) = seen(bench, log, "alice")
    placed = place(log, tenant="clinic", subject="alice")
    assert (placed.record.reason, placed.record.tenant, placed.record.actor) == ("case-7", "clinic", alice)
    place(log, "everything")
    assert in_force(log) == ["case-7", "everything"]
    log.close()
    again = bench.open()
    assert in_force(again) == ["case-7", "everything"]
    lifted = release(again)
    assert (lifted.record.kind, lifted.record.actor) == ("hold.released", alice)
    assert in_force(again) == ["everything"]
    place(again, tenant="lab")  # the name is free again
    assert in_force(again) == ["everything", "case-7"]
    report = bench.audit()
    assert report.ok, report.lines()


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda log: place(log, "there"), "hold-exists"),
        (lambda log: release(log, "nowhere"), "hold-unknown"),
        (lambda log: place(log, tenant="clinic", subject="nobody"), "subject-unknown"),
        (lambda log: erase(log, "nobody"), "subject-unknown"),
        (lambda log: erase(log, tenant="lab"), "subject-unknown"),
    ],
)
def test_what_cannot_be_done_is_no_record(bench, log, work: Any, code: str) -> None:
    seen(bench, log, "alice")
    place(log, "there", tenant="elsewhere")
    size = log.state.size
    with pytest.raises(PrivacyRefused) as caught:
        work(log)
    assert caught.value.code == code
    assert log.state.ok
    assert log.state.size == size


def test_holds_are_bounded(log, monkeypatch: Any) -> None:
    monkeypatch.setattr(holds, "MAX_HOLDS", 2)
    place(log, "a")
    place(log, "b")
    with pytest.raises(PrivacyRefused, match="too many"):
        place(log, "c")
    release(log, "a")
    place(log, "c")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE record SET reason = 'another' WHERE kind = 'hold.placed'",
        "UPDATE record SET actor = 'somebody' WHERE kind = 'hold.placed'",
        "UPDATE record SET kind = 'hold.released' WHERE kind = 'hold.placed'",
        "DELETE FROM leaf WHERE idx IN (SELECT idx FROM record WHERE kind = 'hold.placed')",
        "DELETE FROM record WHERE kind = 'hold.placed'",
        "UPDATE record SET kind = 'key.rotate' WHERE kind = 'hold.placed'",
        "UPDATE head SET holds = zeroblob(32)",
        "DELETE FROM record WHERE kind = 'hold.placed'; UPDATE head SET holds = zeroblob(32)",
        "UPDATE head SET holds = NULL",
    ],
)
def test_an_index_that_hides_a_hold_erases_nobody(bench, log, change: str) -> None:
    (alice,) = seen(bench, log, "alice")
    place(log, tenant="clinic", subject="alice")
    for statement in change.split("; "):
        bench.sql(statement)
    with pytest.raises((LogDamaged, LogUnavailable)):  # the latter: the head is not where the writer left it
        erase(log)
    assert bench.sql("SELECT count(*) FROM subject") == [(1,)]
    assert key_row(bench, alice)
    with pytest.raises(LogDamaged):
        erase(bench_again(bench, log))


def bench_again(bench: Any, log: Any) -> Any:
    log.close()
    return bench.open()


def test_a_pruner_sees_that_the_index_hides_a_hold(bench, log) -> None:
    place(log, tenant="clinic")
    bench.sql("DELETE FROM record WHERE kind = 'hold.placed'")
    with log.reading() as connection, pytest.raises(LogDamaged):
        holds_by_index(connection)


def test_the_holds_of_a_log_from_before_they_were_chained_are_found_in_its_leaves(bench, log) -> None:
    seen(bench, log, "alice")
    place(log, tenant="clinic", subject="alice")
    place(log, "other", tenant="lab")
    release(log, "other")
    log.append(bench.draft(detail={"kind": "hold.placed"})).result()
    log.close()
    (size, root), *_ = bench.sql("SELECT size, root FROM head")
    before = HeadSeal(SIGNER).over(size, bytes(root), holds=None)
    bench.sql("UPDATE head SET holds = NULL, seal = ?", before)
    again = bench.open()
    assert in_force(again) == ["case-7"]
    assert bench.sql("SELECT count(*) FROM head WHERE holds IS NULL") == [(0,)]
    place(again, "another", tenant="lab")
    again.close()
    (size, root), *_ = bench.sql("SELECT size, root FROM head")
    before = HeadSeal(SIGNER).over(size, bytes(root), holds=None)
    bench.sql("UPDATE head SET holds = NULL, seal = ?", before)
    bench.sql("DELETE FROM record WHERE kind = 'hold.placed' AND reason = 'case-7'")
    with pytest.raises(LogDamaged):
        in_force(bench.open())


def test_a_hold_waits_for_no_pruner_and_goes_between_none(postgres_bench) -> None:
    log = postgres_bench.open()
    with postgres_bench.store.server.connect(postgres_bench.store.name) as pruner:
        pruner.execute("SELECT pg_advisory_lock(%s)", [holds.PRUNING_LOCK])
        with pytest.raises(PrivacyRefused) as caught:
            place(log)
        assert caught.value.code == "pruning-under-way"
        assert log.state.ok
        pruner.execute("SELECT pg_advisory_unlock(%s)", [holds.PRUNING_LOCK])
    place(log)


# Erasure -------------------------------------------------------------------------------------------------------------


def test_who_is_erased_is_gone_and_the_log_still_proves(bench, log) -> None:
    alice, bob = seen(bench, log, "alice", "bob")
    before = log.append(bench.draft(actor=alice)).result()
    done = erase(log)
    record = done.record
    assert (record.kind, record.actor, record.tenant, record.reason) == (
        "erasure.completed", alice, "clinic", "objection"
    )  # fmt: skip
    assert record.detail == {"by": "uid:1", "note": "asked"}
    assert b"alice" not in done.leaf
    assert [ref for (ref,) in bench.sql("SELECT ref FROM subject")] == [bob]
    with pytest.raises(PrivacyRefused):
        erase(log)
    new = log.actor("clinic", "alice")
    assert new not in (alice, bob)
    log.append(bench.draft(actor=new)).result()
    assert log.actor("clinic", "bob") == bob
    report = bench.audit(receipts=[before.receipt, done.receipt])
    assert report.ok, report.lines()


@pytest.mark.parametrize("over", [{}, {"tenant": "clinic"}, {"tenant": "clinic", "subject": "alice"}])
def test_a_hold_blocks_an_erasure_and_that_is_on_record(bench, log, over: dict[str, str]) -> None:
    (alice,) = seen(bench, log, "alice")
    place(log, **over)
    done = erase(log)
    assert (done.record.kind, done.record.reason, done.record.outcome) == ("erasure.refused", "legal-hold", "refused")
    assert done.record.detail == {"by": "uid:1", "note": "asked", "ground": "objection", "holds": "case-7"}
    assert log.actor("clinic", "alice") == alice
    release(log)
    assert erase(log).record.kind == "erasure.completed"


@pytest.mark.parametrize("over", [{"tenant": "lab"}, {"tenant": "clinic", "subject": "bob"}])
def test_a_hold_over_others_blocks_nothing(bench, log, over: dict[str, str]) -> None:
    seen(bench, log, "alice", "bob")
    place(log, **over)
    assert erase(log).record.kind == "erasure.completed"


def test_the_sealed_name_and_its_key_are_in_no_file_afterwards(sqlite_bench) -> None:
    bench, log = sqlite_bench, sqlite_bench.open()
    seen(bench, log, *(f"person {number}" for number in range(50)), "alice")
    (sealed,) = bench.sql("SELECT sealed FROM subject WHERE ref = ?", log.actor("clinic", "alice"))[0]
    handle, wrapped = key_row(bench, log.actor("clinic", "alice"))

    def copies() -> int:
        files = list(bench.path.parent.iterdir())
        return sum(path.read_bytes().count(value) for path in files for value in (sealed, handle, wrapped))

    assert copies() > 0
    assert erase(log).record.kind == "erasure.completed"
    assert open_database(bench.url).scrub()
    assert log.subjects.scrub()
    assert copies() == 0


def test_who_reads_keeps_the_copy_for_a_while_and_that_is_said(sqlite_bench, monkeypatch: Any) -> None:
    monkeypatch.setattr("audit.sqlite.SCRUB_WAIT_S", 0.01)
    bench, log = sqlite_bench, sqlite_bench.open()
    seen(bench, log, "alice")
    with log.reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM subject").scalar_one()
        erase(log)
        assert not open_database(bench.url).scrub()
    assert open_database(bench.url).scrub()
    log.append(bench.draft()).result()


def test_the_server_of_a_database_scrubs_by_itself(postgres_bench) -> None:
    assert not open_database(postgres_bench.url).scrub()


def test_erasures_while_everybody_goes_on(bench, log) -> None:
    """After an erasure nobody new is recorded under the erased pseudonym, whatever runs at that moment."""
    stop = threading.Event()
    problems: list[str] = []
    erased: set[str] = set()

    def caller(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            done = frozenset(erased)
            ref = log.actor("clinic", f"person {chance.randrange(4)}")
            if ref in done:
                problems.append(ref)
            log.append(bench.draft(actor=ref)).result()

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for number in range(40):
        try:
            erased.add(erase(log, f"person {number % 4}").record.actor)
        except PrivacyRefused:
            continue  # did not come back yet
    stop.set()
    for thread in threads:
        thread.join()
    assert len(erased) > 5
    assert problems == []
    assert log.state.ok
    assert not {ref for (ref,) in bench.sql("SELECT ref FROM subject")} & erased
    report = bench.audit()
    assert report.ok, report.lines()


# Nobody is left ------------------------------------------------------------------------------------------------------


def forget(log: Any, *, before_us: int = 2**53) -> Any:
    effect = forgetting(log.subjects, after="", before_us=before_us)
    return log.append(Record(kind="erasure.completed"), effect).result()


def test_people_of_whom_no_record_is_left_are_forgotten(bench, log) -> None:
    alice, bob = seen(bench, log, "alice", "bob")
    log.close()
    bench.sql("DELETE FROM record WHERE actor = ?", alice)
    again = bench.open()
    with pytest.raises(PrivacyRefused):
        forget(again, before_us=0)  # too young
    done = forget(again)
    assert (done.record.reason, done.record.actor, done.record.detail["count"]) == ("no-longer-needed", "", "1")
    assert [ref for (ref,) in bench.sql("SELECT ref FROM subject")] == [bob]
    with pytest.raises(PrivacyRefused):
        forget(again)


@pytest.mark.parametrize("over", [{}, {"tenant": "lab"}])
def test_a_hold_over_a_tenant_keeps_every_name(bench, log, over: dict[str, str]) -> None:
    log.actor("clinic", "alice")
    log.append(bench.draft()).result()
    log.close()
    again = bench.open()
    place(again, **over)
    with pytest.raises(PrivacyRefused):
        forget(again)
    assert len(bench.sql("SELECT ref FROM subject")) == 1
