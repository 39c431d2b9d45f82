"""Opening: one writer, damage refused, what a crash cut off gets its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert, select

from audit import log as log_module
from audit import postgresql
from audit.commit import Committer
from audit.errors import LogDamaged, LogInUse
from audit.query import RecordFilter
from sealgate.errors import ConfigurationError
from sealgate.transparency.notes import NoteSigner, open_checkpoint
from sealgate.transparency.record import Record
from tests.audit.conftest import end_unheard, open_files

TABLES = MetaData()
lost = Table("lost", TABLES, Column("grant_id", Text, primary_key=True), Column("n", Integer))


def test_two_writers_in_one_process_and_in_two(bench, log, monkeypatch: Any) -> None:
    monkeypatch.setattr(postgresql, "WRITER_LOCK_WAIT_S", 0.1)
    with pytest.raises(LogInUse):
        bench.open()
    script = (
        "import sys\nfrom pathlib import Path\nfrom audit import postgresql\npostgresql.WRITER_LOCK_WAIT_S = 1.0\n"
        "from audit.log import AuditLog\nfrom sealgate.transparency.notes import NoteSigner\n"
        "signer = NoteSigner.from_seed('example.com/log', b'\\x01' * 32)\n"
        "AuditLog.open(sys.argv[1], signer=signer, subjects_key=b'\\x02' * 32, origin='example.com/log', "
        "person_keys=Path(sys.argv[2]))\n"
    )
    other = subprocess.run([sys.executable, "-c", script, bench.url, str(bench.people)], capture_output=True, text=True)
    assert "LogInUse" in other.stderr
    assert log.append(bench.draft()).result().index == 1
    log.close()
    again = [sys.executable, "-c", script + "import os; os._exit(0)", bench.url, str(bench.people)]
    subprocess.run(again, check=True)
    bench.open()


def test_a_failed_open_lets_the_next_one_in(bench) -> None:
    bench.open().close()
    with pytest.raises(LogInUse):
        bench.open(origin="example.com/else", signer=NoteSigner.from_seed("example.com/else", b"\x01" * 32))
    bench.open()


# Damage --------------------------------------------------------------------------------------------------------------


def fill(bench: Any, count: int) -> None:
    log = bench.open()
    for future in [log.append(bench.draft(reason=str(number))) for number in range(count)]:
        future.result()
    log.close()


DAMAGE = {
    "a changed leaf": "UPDATE leaf SET leaf = CAST(replace(leaf, 'clinic', 'cliniq') AS BLOB) WHERE idx = {middle}",
    "a leaf gone": "DELETE FROM leaf WHERE idx = {middle}",
    "the newest leaf gone": "DELETE FROM leaf WHERE idx = {last}",
    "the newest record row gone": "DELETE FROM record WHERE idx = {last}",
    "head moved back": "UPDATE head SET size = size - 1",
    "head moved on": "UPDATE head SET size = size + 1",
    "another root": "UPDATE head SET root = zeroblob(32)",
    "head gone": "DELETE FROM head",
    "tiles gone": "DELETE FROM tile",
    "a tile changed": "UPDATE tile SET hashes = zeroblob(8192) WHERE level = 0",
    "a higher tile changed": "UPDATE tile SET hashes = zeroblob(length(hashes)) WHERE level = 1",
    "a checkpoint of nonsense": "UPDATE checkpoint SET note = X'00'",
    "another release": "UPDATE head SET schema_version = 99",
    "an open request that is none": "INSERT INTO open_intent VALUES ('x', 3)",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_log_is_not_written_to(bench, name: str) -> None:
    fill(bench, 300)
    ((last,),) = bench.sql("SELECT max(idx) FROM leaf")
    bench.sql(DAMAGE[name].format(last=last, middle=last - 10))
    before = bench.sql("SELECT count(*), max(idx) FROM leaf")
    with pytest.raises(LogInUse if name == "another release" else LogDamaged):
        bench.open()
    assert bench.sql("SELECT count(*), max(idx) FROM leaf") == before


def test_not_a_database(sqlite_bench) -> None:
    bench = sqlite_bench
    bench.path.write_bytes(b"this is no database, it only looks like a file" * 100)
    with pytest.raises(LogDamaged):
        bench.open()
    bench.path.unlink()
    bench.path.mkdir()
    with pytest.raises(ConfigurationError):
        bench.open()


def test_a_rolled_back_log_contradicts_its_checkpoint(bench) -> None:
    """An old copy of the leaves under the newer checkpoint: what was signed is no longer there."""
    fill(bench, 10)
    old = bench.save()
    fill(bench, 10)
    (note,) = bench.sql("SELECT size, ts_us, note FROM checkpoint ORDER BY size DESC LIMIT 1")
    bench.restore(old)
    bench.sql("INSERT INTO checkpoint VALUES (?, ?, ?)", *note)
    with pytest.raises(LogDamaged):
        bench.open()


def test_a_log_that_grew_anew_contradicts_what_was_signed(bench) -> None:
    """Rolled back, then written on for longer: the signed checkpoint's size exists again, its tree does not."""
    fill(bench, 10)
    old = bench.save()
    fill(bench, 10)
    (note,) = bench.sql("SELECT size, ts_us, note FROM checkpoint ORDER BY size DESC LIMIT 1")
    bench.restore(old)
    fill(bench, 20)
    bench.sql("DELETE FROM checkpoint")
    bench.sql("INSERT INTO checkpoint VALUES (?, ?, ?)", *note)
    with pytest.raises(LogDamaged):
        bench.open()


def test_records_that_no_checkpoint_was_ever_signed_over_are_not_vouched_for(bench, tmp_path: Path, make_bench) -> None:
    """Whoever can write the file, but has no key, makes a whole past of its own and leaves the signing to the host."""
    (tmp_path / "forger").mkdir()
    forger = make_bench(tmp_path / "forger")
    stranger = NoteSigner.from_seed(bench.origin, b"\x66" * 32)
    log = forger.open(signer=stranger)
    log.append(forger.draft()).result()
    log.close()
    forger.sql("DELETE FROM checkpoint")
    with pytest.raises(LogDamaged, match="no checkpoint"):
        forger.open()


def test_a_crash_before_the_first_checkpoint_is_no_damage(bench, monkeypatch: Any) -> None:
    with monkeypatch.context() as crashing:
        crashing.setattr(Committer, "publish", lambda _: (_ for _ in ()).throw(SystemExit))
        for _ in range(2):
            with pytest.raises(SystemExit):
                bench.open()
    log = bench.open()
    assert log.state.size == 3
    log.append(bench.draft()).result()


def test_another_key_does_not_continue_the_log(bench) -> None:
    fill(bench, 3)
    with pytest.raises(LogDamaged):
        bench.open(signer=NoteSigner.from_seed(bench.origin, b"\x09" * 32))


@pytest.mark.parametrize("count", [0, 1, 253, 254, 255, 256, 510, 511, 700])
def test_every_shape_of_right_edge_opens_again(bench, count: int) -> None:
    fill(bench, count)  # and two records around them
    fill(bench, 1)
    assert bench.audit().ok


# What a crash cut off ------------------------------------------------------------------------------------------------


def crash(bench: Any, log: Any) -> None:
    """As SIGKILL leaves it: the file as it is, nobody's lock. (Real kills: test_crash.py.)"""
    end_unheard(log)
    log._subjects.close()
    log._reader.dispose()
    log._hold.release()
    bench.logs.remove(log)


def test_every_open_authorization_is_aborted_with_its_effect(bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(log_module, "MAX_BATCH", 4)  # several batches
    first = bench.open(extra_tables=(TABLES,))
    begun = [bench.authorize(first, reason=str(number), authn="jwt", model_digest="cd" * 32) for number in range(11)]
    first.append(bench.end(begun[3].record)).result()
    crash(bench, first)

    def on_abort(connection: Connection, record: Record) -> Record:
        connection.execute(insert(lost).values(grant_id=record.grant, n=record.intent_seq))
        return msgspec.structs.replace(record, budget_after_micro=1)

    bench.open(extra_tables=(TABLES,), on_abort=on_abort)
    reader = bench.reader()
    aborted = reader.records(RecordFilter(kind="inference.aborted", oldest_first=True)).records
    expected = [item for item in begun if item is not begun[3]]
    assert [entry.record.grant for entry in aborted] == [item.record.id for item in expected]
    for entry, item in zip(aborted, expected, strict=True):
        same = ("tenant", "actor", "authn", "model", "model_digest", "purpose", "operation")
        assert [getattr(entry.record, name) for name in same] == [getattr(item.record, name) for name in same]
        assert (entry.record.intent_seq, entry.record.budget_after_micro) == (item.index, 1)
    with reader._engine.begin() as connection:
        assert {row.grant_id for row in connection.execute(select(lost))} == {item.record.id for item in expected}
    opened = reader.records(RecordFilter(kind="log.opened")).records[0]
    assert opened.record.detail == {"size": "13", "aborted": "10"}
    reader.close()


def test_a_crash_while_recovering_is_recovered_from(bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(log_module, "MAX_BATCH", 4)
    first = bench.open()
    for _ in range(11):
        bench.authorize(first)
    crash(bench, first)
    calls = 0

    def dies(_: Connection, record: Record) -> Record:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return record

    with pytest.raises(KeyboardInterrupt):
        bench.open(on_abort=dies)
    bench.open()
    reader = bench.reader()
    assert len(reader.records(RecordFilter(kind="inference.aborted")).records) == 11
    reader.close()
    report = bench.audit()
    assert report.steps[5].status == "ok", report.lines()


def test_an_abort_effect_that_fails_keeps_the_log_shut(bench) -> None:
    first = bench.open()
    bench.authorize(first)
    crash(bench, first)

    def fails(*_: Any) -> Record:
        raise ValueError("the budget book is broken")

    with pytest.raises(ValueError, match="broken"):
        bench.open(on_abort=fails)
    bench.open()


def test_an_opening_that_fails_leaves_the_database_closed(sqlite_bench) -> None:
    first = sqlite_bench.open()
    sqlite_bench.authorize(first)
    crash(sqlite_bench, first)

    def fails(*_: Any) -> Record:
        raise ValueError("the budget book is broken")

    with pytest.raises(ValueError, match="broken") as failed:
        sqlite_bench.open(on_abort=fails)
    assert failed.tb, "and all that it had opened is still there"
    assert open_files(sqlite_bench.path.parent) == []


def test_the_checkpoint_is_published_without_being_asked(bench, log, until: Callable[..., None]) -> None:
    done = log.append(bench.draft()).result()
    reader = bench.reader()
    until(lambda: open_checkpoint(reader.checkpoint(), [bench.verifier]).checkpoint.size == done.index + 1)
    reader.close()


def test_checkpoints_are_thinned(bench) -> None:
    moment = 1_000_000_000_000_000
    log = bench.open(clock=lambda: moment)
    reader = bench.reader()
    for _ in range(3):
        moment += 60_000_000
        for _ in range(3):
            log.append(bench.draft()).result()
            log._committer.publish()
    log.close()
    assert bench.sql("SELECT count(*) FROM checkpoint") == [(4,)]  # one of the opening, one a minute
    reader.close()


@pytest.mark.parametrize("name", ["a?b=c", "50%25", "%2e%2e%2fup", "a#b", "ä b"])
def test_the_log_is_in_its_folder_whatever_the_folder_is_called(tmp_path: Path, make_sqlite_bench, name: str) -> None:
    folder = tmp_path / "here" / name
    folder.mkdir(parents=True)
    bench = make_sqlite_bench(folder)
    log = bench.open()
    log.append(bench.draft()).result()
    log.close()
    assert [path.name for path in (tmp_path / "here").iterdir()] == [name]
    assert bench.path.stat().st_mode & 0o077 == 0
    assert bench.audit().ok
